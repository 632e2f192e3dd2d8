"""Checksums of files, by which bytes that changed since they were written are noticed."""

import zlib
from pathlib import Path

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


def checksums(folder: Path, without: str | None = None) -> dict[str, int]:
    """CRC-32 of every file below `folder` by its path in it, but for the file at the path `without`."""
    return {name: checksum(folder / name) for name in names_in(folder) if name != without}
