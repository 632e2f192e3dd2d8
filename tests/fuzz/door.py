"""A door: a place where something that a user wrote comes in, and what to try there."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis.strategies import SearchStrategy

from stitch.commands.errors import KNOWN


def nothing() -> None:
    pass


@dataclass(frozen=True)
class Door:
    """What may be tried at one place, and what may come of it.

    cases   makes inputs: the bytes of a file called `file`, or the input of `call` itself where that is None.
    call    what the command line calls, with the path of the file or with the case. It raises one of `known`, or accepts.
    sound   whether (the case, what `call` returned) may be, written from the format's documented rules and not from the code.
    kept    cases that once went wrong, and at least one that is accepted. They are always tried.
    ready   imports, and makes what `call` needs, once and before anything is timed.
    """

    name: str
    cases: SearchStrategy[Any]
    call: Callable[[Any], Any]
    sound: Callable[[Any, Any], bool]
    file: str | None = None
    kept: tuple[Any, ...] = ()
    ready: Callable[[], Any] = nothing
    known: tuple[type[Exception], ...] = KNOWN

    def given(self, case: Any, folder: Path) -> Any:
        """What `call` gets for a case: the case, or a file in `folder` that holds it."""
        if self.file is None:
            return case
        path = folder / self.file
        path.write_bytes(case)
        return path

    def names(self, line: str, case: Any) -> bool:
        """Whether a message says which file is meant."""
        return self.file is None or self.file in line
