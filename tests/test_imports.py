"""The structure of the packages, checked on every import: rooms are ranked, and an import goes within its room or to a
lower rank.

A room is a folder of `stitch/`, a single file there, or one of the packages beside it. `RANKS` is the only table. To
move a file, change `RANKS` as well if its room is new.
"""

import ast
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("stitch", "sae", "matching")
OURS = {*PACKAGES, "cli"}
FILES = sorted([ROOT / "cli.py", *(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))])

# From the lowest rank to the highest. Rooms of one rank do not import each other.
RANKS = (
    "stitch/errors stitch/progress sae matching stitch/modeling",
    "stitch/files stitch/regression stitch/hub",
    "stitch/text stitch/models",
    "stitch/internals stitch/activations",
    "stitch/features",
    "stitch/translation",
    "stitch/config",
    "stitch/composite",
    "stitch/evaluation",
    "stitch/estimates",
    "stitch/layers stitch/report stitch/circuits",
    "stitch/pages",
    "stitch/conversions stitch/grafts stitch/transfers",
    "stitch/frontier",
    "stitch/jobs",
    "stitch/demo stitch/synthesis",
    "stitch/api",
    "stitch/commands",
    "cli",
)
RANK = {room: rank for rank, rooms in enumerate(RANKS) for room in rooms.split()}
MOST_ROOMS, MOST_FLOORS = 32, 16

# Each takes from a tenth of a second to eight seconds to import.
HEAVY = set("torch numpy scipy transformers tokenizers datasets huggingface_hub sae_lens transformer_lens ot".split())

# The only place (a folder or a file) that may import a library.
HOMES = {
    "sae_lens": "sae/",
    "transformer_lens": "sae/",
    "huggingface_hub": ("stitch/hub/", "stitch/models/hub", "stitch/files/front_matter"),
    "typer": ("cli.py", "stitch/commands/"),
    "click": ("cli.py", "stitch/commands/"),
    "rich": ("stitch/api/", "stitch/commands/"),
}

# Distributions whose name differs from the module they provide.
DISTRIBUTIONS = {
    "ot": "pot",
    "lm_eval": "lm-eval",
    "yaml": "pyyaml",
    "automata": "automata-lib",
    "vl_convert": "vl-convert-python",
}


@dataclass(frozen=True)
class Import:
    file: str  # relative to the root, with forward slashes
    line: int
    module: str  # absolute and dotted; for `from a import b` it is `a.b`, where b may be a name inside the module a
    on_load: bool  # runs when the file is imported, not inside a function

    @property
    def package(self) -> str:
        return self.module.partition(".")[0]

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


def imports_of(source: str, file: str) -> list[Import]:
    """Every import statement of a file. Those for type checkers only (`if TYPE_CHECKING:`) do not count as on load."""
    package = file.removesuffix(".py").split("/")[:-1]

    def modules(node: ast.AST) -> list[str]:
        if isinstance(node, ast.Import):
            return [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            here = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*here, *([node.module] if node.module else [])])
            return [f"{base}.{alias.name}" for alias in node.names]
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func)
            if called in {"import_module", "importlib.import_module", "__import__"}:
                return [str(node.args[0].value)]
        return []

    def visit(node: ast.AST, on_load: bool) -> Iterator[Import]:
        for module in modules(node):
            yield Import(file, node.lineno, module, on_load)  # pyright: ignore[reportAttributeAccessIssue]
        for name, value in ast.iter_fields(node):
            late = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) and name == "body"
            typing = isinstance(node, ast.If) and name == "body" and ast.unparse(node.test).endswith("TYPE_CHECKING")
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from visit(child, on_load and not late and not typing)

    return list(visit(ast.parse(source), True))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room_of(module: str) -> str:
    """The room of a file, given as a dotted module: `stitch.files.shards` is in `stitch/files`."""
    parts = module.split(".")
    return "/".join(parts[:2]) if parts[0] == "stitch" and len(parts) > 1 else parts[0]


@cache
def imports() -> list[Import]:
    """Of all files. Not read on load, which every process of a test run does."""
    return [found for path in FILES for found in imports_of(path.read_text(), relative(path))]


def breaches(room: str, *forbidden: str) -> list[str]:
    return [str(each) for each in imports() if each.file.startswith(room) and each.package in forbidden]


def test_the_reader_of_imports_sees_every_form():
    source = """
import a.b, c as d
from e.f import g
from . import h
from ..i import j
if TYPE_CHECKING:
    import k
else:
    import l
def late(x=__import__("m")):
    import n
    return importlib.import_module("o")
class Early:
    from p import q
"""
    found = {each.module: each.on_load for each in imports_of(source, "one/two/three.py")}
    early = dict.fromkeys(["a.b", "c", "e.f.g", "one.two.h", "one.i.j", "l", "m", "p.q"], True)
    assert found == early | {"k": False, "n": False, "o": False}


def module_of(file: str) -> str:
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def climbing() -> list[str]:
    """Imports of a room that is not of a lower rank, each with what to do about it."""
    found = []
    for each in imports():
        here, there = room_of(module_of(each.file)), room_of(each.module)
        if each.package not in OURS or here == there or "stitch" in (here, there):
            continue
        if RANK[there] >= RANK[here]:
            found.append(
                f"{each}: {here} has rank {RANK[here]} and {there} rank {RANK[there]}. Move what is imported to a room of "
                f"a lower rank, or the importing code to a higher one."
            )
    return found


def test_every_room_has_a_rank():
    rooms = {room_of(module_of(relative(path))) for path in FILES} - {
        "stitch"
    }  # stitch/__init__.py loads everything on demand
    assert sorted(rooms - set(RANK)) == [], "give these rooms a place in RANKS"
    assert sorted(set(RANK) - rooms) == [], "these rooms are gone: take them out of RANKS"
    assert len(rooms) <= MOST_ROOMS


def test_imports_go_within_a_room_or_down():
    found = climbing()
    assert not found, "\n".join(found)


def test_there_are_few_floors():
    """A room is one floor above the highest room that it imports."""
    below: dict[str, set[str]] = {room: set() for room in RANK}
    for each in imports():
        here, there = room_of(module_of(each.file)), room_of(each.module)
        if here in below and there in below and here != there:
            below[here].add(there)
    floors: dict[str, int] = {}
    for room in sorted(RANK, key=lambda room: RANK[room]):
        floors[room] = 1 + max((floors[other] for other in below[room]), default=0)
    assert max(floors.values()) <= MOST_FLOORS, floors


def test_an_import_of_a_higher_room_is_found_and_named(monkeypatch):
    wrong = Import("stitch/files/shards.py", 7, "stitch.jobs.join.stitch", False)
    monkeypatch.setitem(globals(), "imports", lambda: [wrong])
    (message,) = climbing()
    assert message.startswith("stitch/files/shards.py:7 imports stitch.jobs.join.stitch: stitch/files has rank 1")


@pytest.mark.parametrize("library", HOMES)
def test_a_library_is_imported_in_one_place_only(library):
    elsewhere = [
        str(each) for each in imports() if each.package == library and not each.file.startswith(HOMES[library])
    ]
    assert elsewhere == []


def test_sae_lens_is_imported_only_inside_functions():
    """Except for classes derived from its own, whose file is itself imported only inside functions."""
    loading = {"sae_lens"}
    while True:
        more = {
            each.file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            for each in imports()
            if each.on_load and any(f"{each.module}.".startswith(f"{module}.") for module in loading)
        }
        if more <= loading:
            break
        loading |= more
    assert loading == {"sae_lens", "sae.sparse_steps"}


@pytest.mark.parametrize(
    ("file", "beside"),
    [
        ("stitch/modeling/modeling_halves.py", ()),
        ("stitch/modeling/modeling_translation.py", ()),
        (
            "stitch/modeling/modeling_composite.py",
            (
                "stitch.modeling.modeling_donors.",
                "stitch.modeling.modeling_halves.",
                "stitch.modeling.modeling_translation.",
            ),
        ),
        ("stitch/modeling/modeling_features.py", ()),
        (
            "stitch/modeling/modeling_recurrent.py",
            (
                "stitch.modeling.modeling_composite.",
                "stitch.modeling.modeling_features.",
                "stitch.modeling.modeling_translation.",
            ),
        ),
    ],
)
def test_the_code_that_ships_with_checkpoints_has_no_other_dependencies(file, beside):
    """Except for the files shipped with it, which it must import relatively to find them in a checkpoint."""
    allowed = sys.stdlib_module_names | {"torch", "transformers"}
    found = [each for each in imports() if each.file == file]
    assert found, f"{file} imports nothing: has it moved?"
    others = [each for each in found if each.package not in allowed]
    assert [str(each) for each in others if not each.module.startswith(beside or "-")] == []
    assert not re.search(r"^\s*(from|import) stitch", (ROOT / file).read_text(), re.MULTILINE)


def declared_dependencies() -> tuple[set[str], set[str]]:
    """Names of the core dependencies, and of those that the extras add."""
    tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[^\w-]", requirement, maxsplit=1)[0].lower() for requirement in requirements}

    extras = [requirement for extra in project["optional-dependencies"].values() for requirement in extra]
    return names(project["dependencies"]), names(extras)


def test_every_import_is_a_declared_dependency():
    core, extra = declared_dependencies()
    undeclared = []
    for each in imports():
        name = DISTRIBUTIONS.get(each.package, each.package.replace("_", "-")).lower()
        known = core if each.on_load else core | extra
        if each.package not in sys.stdlib_module_names | OURS and name not in known:
            undeclared.append(str(each))
    assert undeclared == []


def fresh_python(*arguments: str) -> str:
    """The output of a new interpreter, without the hooks and modules of this one."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "dumb"}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("module", ["cli", "stitch", "stitch.errors", "stitch.config", "sae.errors", "matching.errors"])
def test_importing_what_must_start_quickly_loads_nothing_heavy(module):
    loaded = fresh_python("-c", f"import sys, {module}; print(*sys.modules)").split()
    assert module in loaded
    assert HEAVY.intersection(loaded) == set()
