"""Output folders: filled beside their place, flushed to disk, renamed into it."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from stitch.errors import StitchError


def appear(target: Path, fill: Callable[[Path], None]) -> None:
    """Fills a folder beside `target`, flushes it to disk, renames it into place; removes it if anything goes wrong."""
    work = target.parent / f".{target.name}.partial"
    new, old = work / "new", work / "old"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _restore(old, target)  # a killed run may have left its work behind
        shutil.rmtree(work, ignore_errors=True)
        new.mkdir(parents=True)
        fill(new)
        for path in sorted(new.rglob("*")):
            _flush(path)
        _flush(new)
        if target.exists():
            target.rename(old)
        new.rename(target)
        _flush(target.parent)
    except OSError as error:
        raise StitchError(
            f"{target} must be writable and fit the disk; got {error.strerror or error}: choose another --out."
        ) from error
    finally:
        _restore(old, target)
        shutil.rmtree(work, ignore_errors=True)


def _restore(old: Path, target: Path) -> None:
    if old.exists() and not target.exists():
        old.rename(target)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def to_json(report: dict) -> bytes:
    return (json.dumps(report, indent=2, sort_keys=True) + "\n").encode()
