"""Where stitch keeps what is costly to make again: dequantised models, the docstring corpus."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$STITCH_CACHE`, else `$XDG_CACHE_HOME/stitch`, else `~/.cache/stitch`. It may be deleted at any time."""
    if chosen := os.environ.get("STITCH_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "stitch"
