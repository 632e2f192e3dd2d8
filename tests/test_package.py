"""The package as it is installed: what the wheel holds, and what a type checker sees of its public names."""

import ast
import importlib
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parent.parent
PACKAGES = ("stitch", "sae", "matching")


@pytest.fixture(scope="module")
def held(tmp_path_factory) -> set[str]:
    """Names of the files in the wheel."""
    [wheel] = WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("dist")), versions=["standard"])
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.mark.parametrize("package", PACKAGES)
def test_the_wheel_says_that_the_package_is_typed(package, held):
    assert f"{package}/py.typed" in held


def test_the_wheel_has_models_templates_and_scripts_and_no_tests(held):
    """What the packages read at run time besides Python, and nothing of the repository around them."""
    beside = {
        str(file.relative_to(ROOT))
        for package in PACKAGES
        for file in (ROOT / package).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert held == {"cli.py", *beside} | {name for name in held if ".dist-info/" in name}
    assert {Path(name).suffix for name in beside} >= {".safetensors", ".json", ".j2", ".css", ".js"}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_type_checker_sees_every_public_name_where_it_is_loaded_from(package):
    """`__getattr__` gives Any; the imports under TYPE_CHECKING give the types, so both must name the same."""
    module = importlib.import_module(package)
    tree = ast.parse((ROOT / package / "__init__.py").read_text())
    [checking] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        name.name: f"{node.module}.{name.name}" if name.name in getattr(module, "_MODULES", ()) else node.module
        for node in checking.body
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }
    homes = {name: home if "." in home else f"{package}.{home}" for name, home in module._HOMES.items()}
    assert seen == homes and set(module.__all__) == set(homes)
