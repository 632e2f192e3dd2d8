"""SUBLEQ programs: a JSON file with the first cells of the memory, and the frames that a checkpoint reads and writes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stitch.errors import UsageError
from stitch.synthesis import interpreters
from stitch.synthesis.json_file import read_json
from stitch.synthesis.machines.subleq_tokens import HALT, NO_OUTPUT

OUTPUT = 255  # the address of the output; there is no cell


@dataclass(frozen=True)
class Program:
    """`memory` holds the first cells, in bytes."""

    about: str
    memory: tuple[int, ...]

    def filled(self, cells: int) -> list[int]:
        """The memory with zeros up to `cells` cells.

        Raises: UsageError when the program is larger.
        """
        if len(self.memory) > cells:
            raise UsageError(
                f"the program must fit the checkpoint's {cells} cells; it has {len(self.memory)}. Compile with more `cells`."
            )
        return [*self.memory, *[0] * (cells - len(self.memory))]


def read_subleq(path: Path) -> Program:
    """Reads a JSON object with `memory`, a list of numbers from -128 to 255, and optionally `about`.

    Raises: UsageError when it is not a program, StitchError when it is not JSON.
    """
    found = read_json(path, "the program")
    if not isinstance(found, dict) or "memory" not in found or not set(found) <= {"memory", "about"}:
        raise UsageError(
            f"a SUBLEQ program needs memory, and may have about; got {sorted(found) if isinstance(found, dict) else found}."
        )
    wrong = [cell for cell in found["memory"] if not (isinstance(cell, int) and -128 <= cell <= 255)]
    if wrong or not found["memory"]:
        raise UsageError(
            f"memory must be one or more numbers from -128 to 255; got {', '.join(map(str, wrong[:3])) or 'none'}."
        )
    return Program(found.get("about", ""), tuple(cell % 256 for cell in found["memory"]))


def frames(memory: Sequence[int], most: int, counter: int = 0) -> list[list[str]]:
    """Up to `most` frames as tokens, from the reference interpreter. The frame in which it halts has only two tokens."""
    found = []
    for out, at, cells in interpreters.subleq(memory, counter):
        frame = [NO_OUTPUT if out is None else f"{out:02x}"]
        if at is None:
            found.append([*frame, HALT])
        else:
            found.append([*frame, f"@{at:02x}", *(f"{cell:02x}" for cell in cells)])
        if at is None or len(found) == most:
            break
    return found
