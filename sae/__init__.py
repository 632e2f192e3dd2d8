"""Sparse autoencoders: trained with SAELens's trainer, measured, stored in its format, and as plain dictionaries.

The package knows activations only, neither models nor text. Names are imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOMES = {
    "train": "single",
    "load": "storage",
    "save": "storage",
    "SAEConfig": "config",
    "SAEError": "errors",
}

__all__ = ["SAEConfig", "SAEError", "load", "save", "train"]

if TYPE_CHECKING:
    from sae.config import SAEConfig
    from sae.errors import SAEError
    from sae.single import train
    from sae.storage import load, save


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"sae.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'sae' has no attribute {name!r}")
