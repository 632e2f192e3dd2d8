"""Numbers of bytes: what a folder takes, and in words."""

from contextlib import suppress
from pathlib import Path


def size_of(folder: Path) -> int:
    """Bytes of the files below a folder; those that are removed meanwhile do not count."""
    total = 0
    for file in folder.rglob("*"):
        with suppress(OSError):
            total += file.stat().st_size if file.is_file() else 0
    return total


def size_in_words(count: float | int) -> str:
    """Such as 512 B, 24.5 MiB or 4.7 GiB."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}" if unit == "B" or count >= 100 else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"
