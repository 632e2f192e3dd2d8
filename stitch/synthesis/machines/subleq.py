"""SUBLEQ programs: a JSON file with the first cells of the memory, and the frames that a checkpoint reads and writes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from stitch.errors import UsageError
from stitch.files.schema import Schema, checked
from stitch.files.specification import read_json
from stitch.synthesis import interpreters
from stitch.synthesis.machines.subleq_tokens import HALT, NO_OUTPUT

OUTPUT = 255  # the address of the output; there is no cell


@dataclass(frozen=True)
class Program:
    """`memory` holds the first cells, in bytes."""

    about: str
    memory: tuple[int, ...]
    where: str = "the program"  # in messages

    def filled(self, cells: int) -> list[int]:
        """The memory with zeros up to `cells` cells.

        Raises: UsageError when the program is larger.
        """
        if len(self.memory) > cells:
            raise UsageError(
                f"{self.where} must fit the checkpoint's {cells} cells; it has {len(self.memory)}. Compile with more `cells`."
            )
        return [*self.memory, *[0] * (cells - len(self.memory))]


class ProgramFile(Schema):
    """A JSON object with `memory`, a list of bytes, -128 to 255, and optionally `about`."""

    memory: list[Annotated[int, Field(ge=-128, le=255)]] = Field(min_length=1, max_length=256)
    about: str = ""


def read_subleq(path: Path) -> Program:
    """Reads a program from a JSON file. Raises: UsageError when it is not a program (`ProgramFile`)."""
    file = checked(ProgramFile, read_json(path, "the program"), str(path))
    return Program(file.about, tuple(cell % 256 for cell in file.memory), str(path))


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
