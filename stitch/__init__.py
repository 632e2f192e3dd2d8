"""Take language models apart and build new ones from the parts.

The main job in ten lines is in the README; every name here is loaded on first use, so that `import stitch` costs nothing.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "Settings": "stitch.config",
    "StitchError": "stitch.errors",
    "UsageError": "stitch.errors",
    "resolve": "stitch.sources",
    "load": "stitch.models",
    "read": "stitch.text",
    "select": "stitch.text",
    "pack": "stitch.tokens",
    "harvest": "stitch.activations",
    "pair": "stitch.activations",
    "compose": "stitch.composite",
    "sweep": "stitch.layer_sweep",
    "chain": "stitch.chaining",
    "Part": "stitch.parts",
}

_MODULES = ("stages", "scoring")

__all__ = list(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in _MODULES:  # `from stitch import stages` finds the submodule; `stitch.stages` alone would not
        return import_module(f"stitch.{name}")
    raise AttributeError(f"module 'stitch' has no attribute {name!r}")
