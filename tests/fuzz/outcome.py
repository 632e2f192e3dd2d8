"""What came of one case, in the process that tried it."""

import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuzz.door import Door
from stitch.commands.errors import line_of

GOOD = ("refused", "accepted")
BAD = ("nonsense", "unclear", "unexpected", "hung", "memory")
LONGEST = 2_001  # characters of a message
OUT_OF_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "unable to allocate",
    "cannot allocate memory",
)
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Outcome:
    """One of GOOD or BAD, and why.

    refused     one of the door's errors, of one printable line that names the file
    accepted    and sound
    nonsense    accepted, but not sound
    unclear     refused by one of the door's errors, whose message is something else than above
    unexpected  another error, or the process died
    hung        no answer in time
    memory      no memory beyond the limit
    """

    kind: str
    why: str = ""


def outcome(door: Door, case: Any, folder: Path) -> Outcome:
    """Tries a case here."""
    try:
        return _outcome(door, case, folder)
    except MemoryError:  # also while a message is made
        return Outcome("memory", "in the words of what happened")


def _outcome(door: Door, case: Any, folder: Path) -> Outcome:
    try:
        given = door.given(case, folder)
        result = door.call(given)
    except door.known as error:
        return _refused(door, case, error)
    except MemoryError as error:
        return Outcome("memory", _where(error))
    except Exception as error:
        short_of_memory = any(words in str(error).lower() for words in OUT_OF_MEMORY)
        return Outcome("memory" if short_of_memory else "unexpected", _where(error))
    try:
        sound = door.sound(case, result)
    except Exception as error:
        return Outcome("nonsense", f"accepted, and the rules cannot even be applied: {_where(error)}")
    return Outcome("accepted") if sound else Outcome("nonsense", f"accepted as {result!r:.300}")


def _refused(door: Door, case: Any, error: Exception) -> Outcome:
    line = line_of(error, ())
    if not line.isprintable() or not 10 < len(line) <= LONGEST:
        return Outcome("unclear", f"the message must be one printable line: {line!r:.300}")
    if not door.names(line, case):
        return Outcome("unclear", f"the message must name the file: {line!r:.300}")
    return Outcome("refused", line)


def _where(error: BaseException) -> str:
    """The error, and the last place in this project that it passed."""
    ours = [
        f"{Path(frame.filename).relative_to(ROOT)}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_relative_to(ROOT) and ".venv" not in frame.filename and "fuzz" not in frame.filename
    ]
    return f"{type(error).__name__} at {ours[-1] if ours else 'the door'}: {' '.join(str(error).split())[:200]}"
