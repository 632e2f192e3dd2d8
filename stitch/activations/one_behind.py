"""Processing of a stream's items in a second thread, while the next item is computed."""

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def one_behind(items: Iterable[T], work: Callable[[T], None]) -> None:
    """Calls work(item) for each item in order, in a second thread, while the next item is computed in this one.

    At most two items are in memory. This saves time when `work` releases Python's global lock, as writing files does.
    """
    with ThreadPoolExecutor(1) as worker:
        working: Future[None] | None = None
        for item in items:
            if working is not None:
                working.result()
            working = worker.submit(work, item)
        if working is not None:
            working.result()
