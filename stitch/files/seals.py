"""Seals: checksums beside a finished file or folder, so that one whose bytes have changed since is noticed and made again."""

import json
from pathlib import Path

from sae.checksums import checksum, checksums
from stitch.files.durable import replacing


def seal(place: Path) -> None:
    """Notes beside the finished file or folder `place` what is in it."""
    with replacing(_seal_of(place)) as temporary:
        temporary.write_text(json.dumps(_content(place)))


def is_sealed(place: Path) -> bool:
    """Whether `place` is there and as it was when it was sealed."""
    try:
        return place.exists() and json.loads(_seal_of(place).read_text()) == _content(place)
    except (OSError, ValueError):
        return False


def _content(place: Path) -> dict[str, int]:
    """Checksums by name; a file's own is that of the empty name."""
    return checksums(place) if place.is_dir() else {"": checksum(place)}


def _seal_of(place: Path) -> Path:
    return place.with_name(f"{place.name}.sum")
