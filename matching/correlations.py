"""Correlations of every feature of A with every feature of B, a block at a time, as often as they are asked for."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float64

from matching.errors import MatchError
from matching.statistics import FeatureMoments, correlation_block
from matching.stream import Batches


@dataclass(frozen=True, eq=False)
class Correlations:
    """Pearson's r of all pairs over a stream whose moments are known (`feature_moments`); −inf where a feature is not live:
    constant, or active on fewer than `minimum_firings` tokens.

    Blocks take at most `budget_bytes`. Each is a pass over the stream, every time; if one block is all, it is kept.
    """

    batches: Batches
    moments_a: FeatureMoments
    moments_b: FeatureMoments
    minimum_firings: int = 10
    budget_bytes: int = 2**30
    _kept: list[Float64[np.ndarray, "rows cols"]] = field(default_factory=list, init=False, repr=False)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.moments_a.mean), len(self.moments_b.mean)

    def live(self) -> tuple[Bool[np.ndarray, " rows"], Bool[np.ndarray, " cols"]]:
        """Which features of A and of B there are correlations of. Raises MatchError when a side has none."""
        return _live("A", self.moments_a, self.minimum_firings), _live("B", self.moments_b, self.minimum_firings)

    def blocks(self) -> Iterator[tuple[int, Float64[np.ndarray, "block cols"]]]:
        """The first row of each block, and the block. Readers must not write to it, nor keep it when they ask for the next.

        Raises: MatchError when the budget is less than one row, when a side has no live feature, or from the stream.
        """
        if self._kept:
            yield 0, self._kept[0]
            return
        rows, cols = self.shape
        if self.budget_bytes < 8 * cols:
            raise MatchError(
                f"matching {cols} features needs a budget of at least {8 * cols:,} bytes; got {self.budget_bytes:,}. Raise it."
            )
        live_a, live_b = self.live()
        block_rows = min(rows, self.budget_bytes // (8 * cols))
        for start in range(0, rows, block_rows):
            stop = min(start + block_rows, rows)
            block = correlation_block(self.batches, self.moments_a, self.moments_b, start, stop)
            block[~live_a[start:stop]] = -np.inf
            block[:, ~live_b] = -np.inf
            if len(block) == rows:
                self._kept.append(block)
            yield start, block
            del block  # the next one must not be allocated beside it


def _live(side: str, moments: FeatureMoments, minimum_firings: int) -> Bool[np.ndarray, " features"]:
    live = moments.live(minimum_firings)
    if not live.any():
        raise MatchError(
            f"matching needs features that vary and fire at least {minimum_firings} times; got none among the "
            f"{len(live)} of {side} on {moments.count} tokens. Use more tokens or another dictionary."
        )
    return live
