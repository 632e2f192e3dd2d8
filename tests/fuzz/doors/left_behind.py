"""Files of stitch in outputs and work folders. They are read to decide; a damaged one counts as missing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz.folders import folder_door, json_file

REQUEST = {"model_a": "demo:gpt2", "tokens": 4096}
MARKER = {"written_by": "stitch-lm", "command": "join", "files": ["report.json", "stitch.json"]}
OWNER = {"pid": 2**22 - 1, "host": "elsewhere", "start": "5", "since": 1_700_000_000.5}
RUN = {"command": "join", "began": 1_700_000_000.5, "stage": "harvest"}
REPORT = {"provenance": {"settings": REQUEST}, "results": []}


def _folder(place: Path, **files: dict) -> Path:
    place.mkdir()
    for name, content in files.items():
        (place / f"{name}.json").write_text(json.dumps(content))
    return place


def output(folder: Path) -> Path:
    return _folder(folder / "output-7f3", stitch=MARKER, report=REPORT)


def work(folder: Path) -> Path:
    return _folder(folder / "work-7f3", owner=OWNER, run=RUN, request=REQUEST)


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


def may_be_replaced(folder: Path, why_not: str | None) -> bool:
    """A folder is replaced only if stitch wrote all that is in it, as a marker says that is JSON and one of stitch."""
    if why_not is not None:
        return why_not.isprintable()
    if not (folder / "stitch.json").exists():  # as of versions before the marker
        return True
    found = json.loads((folder / "stitch.json").read_bytes())
    return found["written_by"] == "stitch-lm" and {"report.json"} <= set(found["files"])


def is_that_report(folder: Path, found: dict | None) -> bool:
    """A run counts as finished only if its report has the settings that were asked for."""
    return found is None or found["provenance"]["settings"] == REQUEST


READ: dict[str, tuple[Callable[[Path], Path], Callable[[Path], Any], Callable[[Path, Any], bool]]] = {
    "stitch.json": (output, marker, may_be_replaced),
    "owner.json": (work, owner, owner_is_sound),
    "run.json": (work, interrupted, left_is_sound),
    "request.json": (work, interrupted, left_is_sound),
    "report.json": (output, done, is_that_report),
}
DOORS = [folder_door(name, make, json_file(name), read, sound) for name, (make, read, sound) in READ.items()]
