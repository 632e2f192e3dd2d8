"""Work on a range of rows, divided among threads."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TypeVar

import numpy as np
from jaxtyping import Int64

T = TypeVar("T")
PIECES = 32  # of a range, after each of which progress can be told


def in_parts(work: Callable[[int, int], T], cost: Int64[np.ndarray, " rows"], threads: int) -> list[T]:
    """Calls work(start, stop) for as many ranges of rows as there are threads, of about equal cost; returns the results in order.

    It is faster only for work that releases Python's global lock, as compiled code does.
    """
    total = np.cumsum(cost + 1)  # every row has a cost even if no token activates it
    if threads == 1 or len(total) <= threads:
        return [work(0, len(total))]
    ends = np.searchsorted(total, total[-1] * np.arange(1, threads) / threads).tolist()
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, [0, *ends], [*ends, len(total)]))


def in_pieces(start: int, stop: int, cost: Int64[np.ndarray, " rows"]) -> Iterator[tuple[int, int]]:
    """The rows from `start` to `stop` as at most PIECES ranges of about equal cost, in order."""
    total = np.cumsum(cost[start:stop] + 1)
    if len(total):
        ends = np.searchsorted(total, total[-1] * np.arange(1, PIECES) / PIECES) + start
        yield from pairwise(np.unique([start, *ends, stop]).tolist())
