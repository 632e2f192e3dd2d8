"""Files of stitch in outputs and work folders. They are read to decide; a damaged one counts as missing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz.folders import folder_door, json_file

REQUEST = {"model_a": "demo:gpt2", "tokens": 4096}
FILES = {
    "stitch.json": {"written_by": "stitch-lm", "command": "join", "files": ["report.json", "stitch.json"]},
    "owner.json": {"pid": 2**22 - 1, "host": "elsewhere", "start": "5", "since": 1_700_000_000.5},
    "run.json": {"command": "join", "began": 1_700_000_000.5, "stage": "harvest"},
    "request.json": REQUEST,
    "report.json": {"provenance": {"settings": REQUEST}, "results": []},
}


def left(folder: Path) -> Path:
    place = folder / "left"
    place.mkdir()
    for name, content in FILES.items():
        (place / name).write_text(json.dumps(content))
    return place


def marker(folder: Path) -> Any:
    from stitch.files.output import why_not_replaceable

    return why_not_replaceable(folder)


def owner(folder: Path) -> Any:
    """As on a file system without locks, where the owner's file alone decides."""
    from stitch.files import owner

    before, owner._is_locked = owner._is_locked, lambda _: None
    try:
        return owner.owner_of(folder)
    finally:
        owner._is_locked = before


def owner_is_sound(folder: Path, found: Any) -> bool:
    from stitch.files.owner import Owner, busy

    return found is None or (isinstance(found, Owner) and bool(str(busy(folder, found))))


def interrupted(folder: Path) -> Any:
    from stitch.files.left import left_in

    return left_in(folder)


def left_is_sound(folder: Path, found: Any) -> bool:
    from stitch.files.left import Left

    return found is None or (isinstance(found, Left) and type(found.request) is dict and bool(found.in_words))


def done(folder: Path) -> Any:
    from stitch.files.finished import finished

    return finished(folder, REQUEST, folder)


def nothing_or(kind: type) -> Callable[[Path, Any], bool]:
    return lambda _, found: found is None or type(found) is kind


READ: dict[str, tuple[Callable[[Path], Any], Callable[[Path, Any], bool]]] = {
    "stitch.json": (marker, nothing_or(str)),
    "owner.json": (owner, owner_is_sound),
    "run.json": (interrupted, left_is_sound),
    "request.json": (interrupted, left_is_sound),
    "report.json": (done, nothing_or(dict)),
}
DOORS = [folder_door(name, left, json_file(name), read, sound) for name, (read, sound) in READ.items()]
