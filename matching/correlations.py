"""Correlations of every feature of A with every feature of B, one feature of A at a time, without the full matrix. Compiled.

Only features that are active on a common token can have a positive correlation. Therefore a feature of A is multiplied only with
the codes of B on the tokens where it is active. All pairs together cost tokens · k_A · k_B multiply–adds, while the matrix of
131,072² correlations would have 17 billion entries.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt32

from matching import codes
from matching.codes import Lists
from matching.compiled import GATHERED, of_pairs
from matching.errors import MatchError
from matching.statistics import FeatureMoments, inverse_deviation, shift
from matching.stream import Batches
from matching.threads import in_parts


class Scales(NamedTuple):
    """Converts sums of products into correlations: means that remain after centring, and 1 / standard deviation (0: not live)."""

    left_a: Float64[np.ndarray, " rows"]
    left_b: Float64[np.ndarray, " cols"]
    scale_a: Float64[np.ndarray, " rows"]
    scale_b: Float64[np.ndarray, " cols"]


class Workspace(NamedTuple):
    """Arrays that one thread writes to."""

    products: Float64[np.ndarray, " cols"]
    met: UInt32[np.ndarray, " places"]
    found: Float64[np.ndarray, " places"]
    numbers: UInt32[np.ndarray, " gathered"]  # codes of GATHERED tokens
    values: Float64[np.ndarray, " gathered"]


@dataclass(frozen=True, eq=False)
class Correlations:
    """Codes in memory, A's by feature and B's by token, with their moments.

    `live_a` and `live_b` mark the features that have correlations: those that vary and are active often enough. Results do
    not depend on the number of `threads`.
    """

    by_feature: Lists
    by_token: Lists
    moments_a: FeatureMoments
    moments_b: FeatureMoments
    live_a: Bool[np.ndarray, " rows"]
    live_b: Bool[np.ndarray, " cols"]
    threads: int = 1

    @classmethod
    def read(
        cls, batches: Batches, *, minimum_firings: int = 10, budget_bytes: int = 2**30, threads: int = 1
    ) -> "Correlations":
        """Reads a stream of codes; if it exceeds `budget_bytes`, every n-th segment of it (`matching.codes.read`).

        Sums are in double precision.

        Raises: MatchError when the budget holds no segment, when a side has no feature that varies and is active on
            `minimum_firings` tokens, or from the stream.
        """
        found = codes.read(batches, budget_bytes)
        live_a, live_b = _live("A", found.moments_a, minimum_firings), _live("B", found.moments_b, minimum_firings)
        return cls(*found, live_a, live_b, threads)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.live_a), len(self.live_b)

    def of(self, rows: Int64[np.ndarray, " pairs"], cols: Int64[np.ndarray, " pairs"]) -> Float64[np.ndarray, " pairs"]:
        """Correlations of a list of pairs; 0 where a feature is not live."""
        order = np.argsort(rows, kind="stable")
        found = np.empty(len(rows))
        distinct_rows, first = np.unique(rows[order], return_index=True)
        ends = np.append(first, len(rows))

        def part(start: int, stop: int) -> None:
            pairs = order[ends[start] : ends[stop]]
            of_pairs(*self.arrays(), rows, cols, pairs, found)

        in_parts(part, self.cost[distinct_rows], self.threads)
        return found

    def co_moments(
        self,
        rows: Int64[np.ndarray, " pairs"],
        cols: Int64[np.ndarray, " pairs"],
        correlation: Float64[np.ndarray, " pairs"],
    ) -> Float64[np.ndarray, " pairs"]:
        """E[z_row z_col], uncentred, of pairs of live features with the given correlations."""
        a, b = self.moments_a, self.moments_b
        return correlation * np.sqrt(a.variance[rows] * b.variance[cols]) + a.mean[rows] * b.mean[cols]

    @property
    def cost(self) -> Int64[np.ndarray, " rows"]:
        """Cost of the correlations of every row, up to a factor: the number of tokens on which it is active."""
        return np.diff(self.by_feature.starts.astype(np.int64))

    def arrays(self) -> tuple[Lists, Lists, Scales, Workspace]:
        """Arguments of the compiled loops, with a new workspace."""
        a, b = self.moments_a, self.moments_b
        scales = Scales(
            a.mean - shift(a),
            b.mean - shift(b),
            np.where(self.live_a, inverse_deviation(a), 0.0),
            np.where(self.live_b, inverse_deviation(b), 0.0),
        )
        width = len(self.live_b)
        longest = GATHERED * int(np.diff(self.by_token.starts).max())
        workspace = Workspace(
            np.zeros(width),
            np.empty(longest + width, np.uint32),
            np.empty(longest + width),
            np.empty(longest, np.uint32),
            np.empty(longest),
        )
        return self.by_feature, self.by_token, scales, workspace


def _live(side: str, moments: FeatureMoments, minimum_firings: int) -> Bool[np.ndarray, " features"]:
    live = moments.live(minimum_firings)
    if not live.any():
        raise MatchError(
            f"matching needs features that vary and are active on at least {minimum_firings} tokens; got none among the "
            f"{len(live)} of {side} in {moments.count} tokens. Use more tokens or another dictionary."
        )
    return live
