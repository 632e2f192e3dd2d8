"""Checksums of finished files, so that one whose bytes have changed since is noticed and made again."""

import json
import zlib
from pathlib import Path

from stitch.files.durable import replacing

READ = 2**24  # bytes at a time


def checksum(file: Path) -> int:
    """CRC-32 of a file."""
    crc = 0
    with file.open("rb") as content:
        while part := content.read(READ):
            crc = zlib.crc32(part, crc)
    return crc


def names_in(folder: Path) -> list[str]:
    """Paths of all files below `folder`, relative to it, sorted."""
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


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
    return {name: checksum(place / name) for name in names_in(place)} if place.is_dir() else {"": checksum(place)}


def _seal_of(place: Path) -> Path:
    return place.with_name(f"{place.name}.sum")
