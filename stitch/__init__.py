"""Take language models apart and build new ones from the parts.

docs/python.md shows the main job in ten lines. Every name here is loaded on first use, so that `import stitch` costs nothing.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "Settings": "stitch.config",
    "StitchError": "stitch.errors",
    "UsageError": "stitch.errors",
    "resolve": "stitch.models.sources",
    "load": "stitch.models.loading",
    "read": "stitch.text.documents",
    "select": "stitch.text.documents",
    "pack": "stitch.text.windows",
    "harvest": "stitch.activations.harvest",
    "pair": "stitch.activations.paired",
    "compose": "stitch.composite.compose",
    "sweep": "stitch.jobs.sweep",
    "chain": "stitch.jobs.chain",
    "Part": "stitch.composite.parts",
}

__all__ = list(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'stitch' has no attribute {name!r}")
