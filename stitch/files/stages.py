"""The unfinished work that the code at hand belongs to, and how far it is."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from stitch.files.left import write_stage

_inside: ContextVar[tuple[Path, ...]] = ContextVar("inside", default=())  # work folders, the outermost first


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Inside the block, the code works in this work folder."""
    before = _inside.set((*_inside.get(), folder))
    try:
        yield
    finally:
        _inside.reset(before)


def current() -> Path | None:
    """The work folder at hand; None outside of a run."""
    return _inside.get()[-1] if _inside.get() else None


def entered(stage: str) -> None:
    """Notes the stage that begins, for whoever finds the work interrupted."""
    if (folder := current()) is not None:
        write_stage(folder, stage)
