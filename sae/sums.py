"""Checksums of a folder's files."""

import zlib
from pathlib import Path

READ = 2**24  # bytes at a time


def sums(folder: Path, without: str) -> dict[str, int]:
    """CRC-32 of every file below `folder` by its path in it, but for the file called `without`."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != without)
    return {file.relative_to(folder).as_posix(): _crc(file) for file in files}


def _crc(file: Path) -> int:
    crc = 0
    with file.open("rb") as content:
        while part := content.read(READ):
            crc = zlib.crc32(part, crc)
    return crc
