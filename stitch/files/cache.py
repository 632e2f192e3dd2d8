"""The cache folder, for files that take long to make: dequantised models and the docstring corpus."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$STITCH_CACHE`, else `$XDG_CACHE_HOME/stitch`, else `~/.cache/stitch`. The user may delete it at any time."""
    if chosen := os.environ.get("STITCH_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "stitch"
