"""What an interrupted run has left in its work folder, and where two files there say so."""

import json
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from stitch.files.ages import age_in_words
from stitch.files.durable import replacing
from stitch.files.sizes import size_in_words, size_of
from stitch.files.unfinished import target_of

REQUEST = "request.json"  # all that decides the result
RUN = "run.json"  # the command, when it began, and where it is
PUBLISHING = "publishing"  # the last stage
LATEST = 2.0**35  # seconds since 1970, in the year 3058


@dataclass(frozen=True)
class Left:
    """An unfinished run. `began` is in seconds since 1970; `request` is empty for a command that cannot go on."""

    folder: Path
    command: str
    request: dict
    stage: str
    began: float

    @property
    def out(self) -> Path:
        return target_of(self.folder)

    @property
    def can_go_on(self) -> bool:
        return bool(self.request)

    @property
    def bytes(self) -> int:
        """What its files take."""
        return size_of(self.folder)

    @property
    def in_words(self) -> str:
        stage = f"stage {self.stage}, " if self.stage else ""
        return f"{stage}begun {age_in_words(self.began)} ago, {size_in_words(self.bytes)}"


def left_in(folder: Path) -> Left | None:
    """What an unfinished run has left in `folder`; None where there is no such folder, or where it has nothing of a run."""
    request, run = read_json(folder / REQUEST), read_json(folder / RUN)
    if request is None and run is None:
        return None
    said = {"command": "", "stage": "", **(run or {})}
    began = read_time(said.get("began"))
    return Left(
        folder,
        str(said["command"]),
        request or {},
        str(said["stage"]),
        folder.stat().st_mtime if began is None else began,
    )


def write_left(folder: Path, command: str, request: dict) -> None:
    """Writes what `left_in` reads, for a run that begins."""
    write_json(folder / REQUEST, request)
    write_json(folder / RUN, {"command": command, "began": time.time(), "stage": ""})


def write_stage(folder: Path, stage: str) -> None:
    """Notes how far the run is. A disk that refuses is met where it matters."""
    with suppress(OSError):
        write_json(folder / RUN, {**(read_json(folder / RUN) or {}), "stage": stage})


def write_json(file: Path, content: dict) -> None:
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(content, sort_keys=True))


def read_json(file: Path) -> dict | None:
    """The object in a file; None where it is missing or damaged."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def read_time(value: object) -> float | None:
    """A time in seconds since 1970 as a file says it; None where it is none."""
    return float(value) if isinstance(value, (int, float)) and 0 <= value < LATEST else None
