"""SUBLEQ programs as data: a JSON file with the memory's first cells, and the frames that a checkpoint reads and writes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stitch.errors import StitchError, UsageError
from stitch.synthesis import interpreters

IO = 255  # as an address: not memory, but the way out


@dataclass(frozen=True)
class Program:
    about: str
    memory: tuple[int, ...]  # bytes

    def filled(self, cells: int) -> list[int]:
        """With zeros to the end of memory. Raises UsageError where it is larger."""
        if len(self.memory) > cells:
            raise UsageError(
                f"the checkpoint has {cells} cells; this program has {len(self.memory)}: compile with a larger --cells."
            )
        return [*self.memory, *[0] * (cells - len(self.memory))]


def read_subleq(path: Path) -> Program:
    """`memory`, a list of numbers from -128 to 255, and `about`. Raises UsageError with what is wrong."""
    if not path.is_file():
        raise UsageError(f"the program must be a JSON file; there is no {path}.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StitchError(f"{path} must be JSON; {error}.") from error
    if not isinstance(found, dict) or "memory" not in found or not set(found) <= {"memory", "about"}:
        raise UsageError(
            f"a SUBLEQ program needs memory (and about); got {sorted(found) if isinstance(found, dict) else found}."
        )
    wrong = [cell for cell in found["memory"] if not (isinstance(cell, int) and -128 <= cell <= 255)]
    if wrong or not found["memory"]:
        raise UsageError(
            f"cells must be numbers from -128 to 255, one or more; got {', '.join(map(str, wrong[:3])) or 'none'}."
        )
    return Program(found.get("about", ""), tuple(cell % 256 for cell in found["memory"]))


def frames(memory: Sequence[int], most: int, counter: int = 0) -> list[list[str]]:
    """Up to `most` frames as tokens, from the reference interpreter; of the one in which it halts, the first two."""
    found = []
    for out, at, cells in interpreters.subleq(memory, counter):
        frame = ["." if out is None else f"{out:02x}"]
        if at is None:
            found.append([*frame, "!"])
        else:
            found.append([*frame, f"@{at:02x}", *(f"{cell:02x}" for cell in cells)])
        if at is None or len(found) == most:
            break
    return found
