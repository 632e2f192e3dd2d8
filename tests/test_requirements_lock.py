"""The versions with hashes are the versions that are tested."""

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


def pinned(file: str, python: str = "3.13") -> dict[str, str]:
    text = re.sub(r"\s*#.*|\s*\\\n\s*--hash=\S+", "", (ROOT / file).read_text())
    found = {}
    for requirement in map(Requirement, filter(None, text.split("\n"))):
        environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
        if requirement.marker is None or requirement.marker.evaluate(environment):
            found[canonicalize_name(requirement.name)] = str(requirement.specifier)
    return found


def test_versions_with_hashes_are_those_of_the_constraints():
    locked, constraints = pinned("requirements.lock"), pinned("constraints.txt")
    differing = {
        name: (version, constraints[name])
        for name, version in locked.items()
        if name in constraints and constraints[name] != version
    }
    assert not differing, "run the command in the head of requirements.lock"
    assert {"torch", "transformers", "sae-lens", "numpy", "pytest"} <= locked.keys() & constraints.keys()


def test_whatever_the_project_and_its_development_need_has_a_hash():
    tomllib = pytest.importorskip("tomllib", reason="comes with Python 3.11")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = [*project["project"]["dependencies"], *project["project"]["optional-dependencies"]["dev"]]
    needed += project["build-system"]["requires"]
    assert {canonicalize_name(Requirement(one).name) for one in needed} <= pinned("requirements.lock").keys()


def test_every_version_has_a_hash():
    blocks = re.split(r"(?m)^(?=[a-z0-9])", (ROOT / "requirements.lock").read_text())[1:]
    assert len(blocks) > 150
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}\b", block) for block in blocks)
