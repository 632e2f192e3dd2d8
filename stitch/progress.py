"""The callback by which library functions report progress, and how a stage counts its steps."""

from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TypeVar

Progress = Callable[[str, int, int], None]  # called with (stage, done, total)
T = TypeVar("T")


class Steps:
    """A stage of `total` steps, or at most so many. It is heard of before the first; call it after each."""

    def __init__(self, stage: str, total: int, progress: Progress | None) -> None:
        self.stage, self.total, self.done, self._progress = stage, total, 0, progress
        if total:
            self._say()

    def __call__(self) -> None:
        self.done += 1
        self._say()

    def end(self) -> None:
        """No more steps are needed: those that were done are all."""
        if self.done < self.total:
            self.total = self.done
            self._say()

    def _say(self) -> None:
        if self._progress is not None:
            self._progress(self.stage, self.done, self.total)


def counted(items: Iterable[T], stage: str, progress: Progress | None, total: int | None = None) -> Iterator[T]:
    """The items, one after another, as steps of a stage. `total` is how many there are, for items that do not know.

    The stage ends where the loop is left.
    """
    if total is None:
        assert isinstance(items, Sized)
        total = len(items)
    step = Steps(stage, total, progress)
    try:
        for item in items:
            yield item
            step()
    finally:
        step.end()
