"""Work that threads share: ranges of rows, or the items of a stream."""

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from jaxtyping import Int64

T = TypeVar("T")


def in_parts(work: Callable[[int, int], T], cost: Int64[np.ndarray, " rows"], threads: int) -> list[T]:
    """work(start, stop) on as many ranges of rows as there are threads, of about equal cost; what they return, in order.

    Worth it for work that lets go of Python's lock, as compiled code does.
    """
    total = np.cumsum(cost + 1)  # a row costs something even if nothing is active on it
    if threads == 1 or len(total) <= threads:
        return [work(0, len(total))]
    ends = np.searchsorted(total, total[-1] * np.arange(1, threads) / threads).tolist()
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, [0, *ends], [*ends, len(total)]))


def one_behind(items: Iterable[T], work: Callable[[T], None], threads: int = 2) -> None:
    """work(item) for each in order; with more than one thread, while the next item is made. No more than two are in memory."""
    if threads == 1:
        for item in items:
            work(item)
        return
    with ThreadPoolExecutor(1) as worker:
        working: Future[None] | None = None
        for item in items:
            if working is not None:
                working.result()
            working = worker.submit(work, item)
        if working is not None:
            working.result()
