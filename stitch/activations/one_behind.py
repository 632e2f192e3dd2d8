"""Work on the items of a stream while the next are made."""

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def one_behind(items: Iterable[T], work: Callable[[T], None]) -> None:
    """work(item) for each in order, in a thread of its own, while the next item is made. No more than two are in memory.

    Worth it for work that lets go of Python's lock, as writing does.
    """
    with ThreadPoolExecutor(1) as worker:
        working: Future[None] | None = None
        for item in items:
            if working is not None:
                working.result()
            working = worker.submit(work, item)
        if working is not None:
            working.result()
