"""Folders that are written completely or not at all."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial-"


@contextmanager
def whole_folder(place: Path) -> Iterator[Path]:
    """Yields an empty folder beside `place` to write into.

    On success its files are synced to disk and it is renamed to `place`; after an error it is removed. Files may be read by
    whom the umask lets read: safetensors' own are for their owner alone.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_name(f"{PARTIAL}{place.name}-{uuid.uuid4().hex[:8]}")
    partial.mkdir()
    try:
        yield partial
        mode = partial.stat().st_mode & 0o666
        for path in [*partial.rglob("*"), partial]:
            if path.is_file():
                path.chmod(mode)
            fsync(path)
        partial.rename(place)
        fsync(place.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def fsync(path: Path) -> None:
    """Waits until a file or a folder is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
