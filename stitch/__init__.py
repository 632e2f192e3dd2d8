"""Take language models apart and build new ones from the parts.

    import stitch

    result = stitch.join("demo:gpt2", "demo:llama", layer=3)
    result.model.generate(...)

One function for every command but `open`, `cache` and `workspace`, with the same names and defaults; docs/python.md shows them.
What is not listed here is private.
Every name is loaded on first use, so that `import stitch` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOMES = {
    "join": "stitch.api.stitching",
    "chain": "stitch.api.stitching",
    "Part": "stitch.composite.parts",
    "sweep": "stitch.api.sweeps",
    "estimate": "stitch.api.estimate",
    "evaluate": "stitch.api.evaluation",
    "inspect": "stitch.api.evaluation",
    "circuit": "stitch.api.circuits",
    "graft": "stitch.api.circuits",
    "convert": "stitch.api.convert",
    "retokenize": "stitch.api.retokenize",
    "compile": "stitch.api.compile",
    "transfer": "stitch.api.transfer",
    "certify": "stitch.api.compiled",
    "run": "stitch.api.compiled",
    "push": "stitch.api.sharing",
    "read_recipe": "stitch.api.recipes",
    "Anatomy": "stitch.models.anatomy",
    "register_anatomy": "stitch.models.anatomy",
    "read_anatomies": "stitch.models.anatomy_file",
    "StitchError": "stitch.errors",
    "UsageError": "stitch.errors",
}
_MODULES = ("convert", "compile", "transfer")  # the others are names in their homes

__all__ = [
    "Anatomy",
    "Part",
    "StitchError",
    "UsageError",
    "certify",
    "chain",
    "circuit",
    "compile",
    "convert",
    "estimate",
    "evaluate",
    "graft",
    "inspect",
    "join",
    "push",
    "read_anatomies",
    "read_recipe",
    "register_anatomy",
    "retokenize",
    "run",
    "sweep",
    "transfer",
]

if TYPE_CHECKING:
    from stitch.api import compile, convert, transfer
    from stitch.api.circuits import circuit, graft
    from stitch.api.compiled import certify, run
    from stitch.api.estimate import estimate
    from stitch.api.evaluation import evaluate, inspect
    from stitch.api.recipes import read_recipe
    from stitch.api.retokenize import retokenize
    from stitch.api.sharing import push
    from stitch.api.stitching import chain, join
    from stitch.api.sweeps import sweep
    from stitch.composite.parts import Part
    from stitch.errors import StitchError, UsageError
    from stitch.models.anatomy import Anatomy, register_anatomy
    from stitch.models.anatomy_file import read_anatomies


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'stitch' has no attribute {name!r}")
    home = import_module(_HOMES[name])
    return home if name in _MODULES else getattr(home, name)


def __dir__() -> list[str]:
    return __all__
