"""Where work folders are, so that those of interrupted runs are found again: a small file for each in the cache folder.

These files are hints. A work folder that was moved or deleted is not listed; one whose file is missing still works.
"""

import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path

from stitch.files.cache import cache_folder
from stitch.files.left import read_json, write_json

FORGOTTEN = 30 * 24 * 3600  # seconds after which a folder is given up whose disk is not there


def register(folder: Path) -> None:
    """Notes that there is such a work folder. A cache that cannot be written is no reason to fail."""
    place = _absolute(folder)
    with suppress(OSError):
        _note(place).parent.mkdir(parents=True, exist_ok=True)
        write_json(_note(place), {"folder": str(place)})


def forget(folder: Path) -> None:
    with suppress(OSError):
        _note(_absolute(folder)).unlink(missing_ok=True)


def registered() -> list[Path]:
    """The work folders that are there, in the order of their names."""
    found = []
    for note in sorted(_notes().glob("*.json")):
        folder = Path(str((read_json(note) or {}).get("folder", "")))
        if folder.is_absolute() and folder.is_dir():
            found.append(folder)
        elif folder.parent.is_dir() or _is_old(note):
            with suppress(OSError):
                note.unlink()
    return sorted(found)


def _notes() -> Path:
    return cache_folder() / "workspaces"


def _note(folder: Path) -> Path:
    return _notes() / f"{hashlib.sha256(os.fsencode(folder)).hexdigest()[:32]}.json"


def _absolute(folder: Path) -> Path:
    return folder.parent.resolve() / folder.name


def _is_old(note: Path) -> bool:
    try:
        return time.time() - note.stat().st_mtime > FORGOTTEN
    except OSError:  # another process has removed it
        return False
