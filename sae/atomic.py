"""Folders that appear whole or not at all."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial-"


@contextmanager
def whole_folder(place: Path) -> Iterator[Path]:
    """An empty folder beside `place` to write into; on success it is fsynced and renamed to `place`, else removed."""
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_name(f"{PARTIAL}{place.name}-{uuid.uuid4().hex[:8]}")
    partial.mkdir()
    try:
        yield partial
        for path in [*partial.rglob("*"), partial]:
            _fsync(path)
        partial.rename(place)
        _fsync(place.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
