"""The callback by which library functions report progress, and how a loop reports its own."""

from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TypeVar

Progress = Callable[[str, int, int], None]  # called with (stage, done, total)
T = TypeVar("T")


def counted(items: Iterable[T], stage: str, progress: Progress | None, total: int | None = None) -> Iterator[T]:
    """The items, one after another. `progress` gets the stage before the first and after the work on each of them.

    `total` is how many there are, for items that do not know.
    """
    if total is None:
        assert isinstance(items, Sized)
        total = len(items)
    if progress and total:
        progress(stage, 0, total)
    for done, item in enumerate(items, 1):
        yield item
        if progress:
            progress(stage, done, total)
