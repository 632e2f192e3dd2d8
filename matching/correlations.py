"""Correlations of every feature of A with every feature of B, a feature of A at a time and without the matrix. Compiled.

Only features that ever fire on the same token can correlate positively, and codes are sparse: a feature of A is multiplied with
the codes of B on its own tokens alone. All pairs of all features cost tokens · k_A · k_B multiply–adds and nothing else, where
the matrix of 131,072² correlations would have 17 billion entries.
"""

from dataclasses import dataclass
from typing import no_type_check

import numba
import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float64, Int64

from matching.errors import MatchError
from matching.statistics import FeatureMoments, inverse_deviation, merged, of_segment, shift, shifted
from matching.stream import SEGMENT, Batches, segments

BYTES = 8  # an active feature of a token: its number, and its value in single precision


@dataclass(frozen=True, eq=False)
class Correlations:
    """Codes in memory, A's by feature and B's by token, with their moments.

    `live_a` and `live_b` say which features have correlations at all: those that vary and are active often enough.
    """

    by_feature: sp.csr_array  # [features of A, tokens]; here and below, features active on most tokens are centred
    by_token: sp.csr_array  # [tokens, features of B]
    moments_a: FeatureMoments
    moments_b: FeatureMoments
    live_a: Bool[np.ndarray, " rows"]
    live_b: Bool[np.ndarray, " cols"]

    @classmethod
    def read(cls, batches: Batches, *, minimum_firings: int = 10, budget_bytes: int = 2**30) -> "Correlations":
        """Reads a stream of codes: every n-th segment of 1,024 tokens, with the least n that `budget_bytes` holds.

        A million tokens with 32 active features on either side take 0.5 GB, twice that while they are read. Values are kept in
        single precision where that loses nothing, as in codes of an SAE, others in half as much memory again: sums are always in
        double precision.

        Raises: MatchError when the budget holds no segment, when a side has no feature that varies and fires `minimum_firings`
            times, or from the stream.
        """
        active = sum(a.nnz + b.nnz for a, b in batches())
        stride = max(1, -(-active * BYTES // budget_bytes))
        parts_a, parts_b, moments = [], [], []
        for number, (a, b) in enumerate(segments(batches)):
            if number % stride == 0:
                found = of_segment(a), of_segment(b)
                moments = [merged(*pair) for pair in zip(moments, found, strict=True)] if moments else found
                parts_a.append(_narrow(a))
                parts_b.append(_narrow(b))
        used = BYTES * sum(part.nnz for part in parts_a + parts_b)
        if used > 2 * budget_bytes:
            raise MatchError(
                f"matching needs a budget that holds {SEGMENT:,} tokens, {used:,} bytes; got {budget_bytes:,}. Raise it."
            )
        moments_a, moments_b = moments
        live_a, live_b = _live("A", moments_a, minimum_firings), _live("B", moments_b, minimum_firings)
        by_feature = sp.csr_array(shifted(_stacked(parts_a), shift(moments_a)).T.tocsr())
        return cls(by_feature, shifted(_stacked(parts_b), shift(moments_b)), moments_a, moments_b, live_a, live_b)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.live_a), len(self.live_b)

    def of(self, rows: Int64[np.ndarray, " pairs"], cols: Int64[np.ndarray, " pairs"]) -> Float64[np.ndarray, " pairs"]:
        """Correlations of any list of pairs; 0 where a feature is not live."""
        order = np.argsort(rows, kind="stable")
        found = np.empty(len(rows))
        _of(*self.arrays(), rows[order], cols[order], order, found)
        return found

    def co_moments(
        self,
        rows: Int64[np.ndarray, " pairs"],
        cols: Int64[np.ndarray, " pairs"],
        correlation: Float64[np.ndarray, " pairs"],
    ) -> Float64[np.ndarray, " pairs"]:
        """E[z_row z_col], uncentred, of live pairs with these correlations."""
        a, b = self.moments_a, self.moments_b
        return correlation * np.sqrt(a.variance[rows] * b.variance[cols]) + a.mean[rows] * b.mean[cols]

    def arrays(self) -> tuple[tuple, tuple, tuple]:
        """What compiled code reads: A's codes, B's codes, and what turns sums of products into correlations.

        Places are unsigned: where they could be negative, numba checks every one of them, which is a third of all the time.
        """
        scales = (
            self.moments_a.mean - shift(self.moments_a),
            self.moments_b.mean - shift(self.moments_b),
            np.where(self.live_a, inverse_deviation(self.moments_a), 0.0),
            np.where(self.live_b, inverse_deviation(self.moments_b), 0.0),
        )
        a, b = (
            (codes.indptr.astype(np.uint64), codes.indices.astype(np.int32, copy=False).view(np.uint32), codes.data)
            for codes in (self.by_feature, self.by_token)
        )
        return a, b, scales


@no_type_check  # compiled code has types of its own
@numba.njit
def correlate(row, a, b, scales, products, seen, met):
    """How many features of B row `row` of A meets on a token: their numbers in `met`, their correlations in `products`.

    `products` and `seen` are as long as B has features; `seen` starts as −1 and names the last row that met a feature.
    """
    (starts_a, tokens, values_a), (starts_b, cols, values_b), (left_a, left_b, scale_a, scale_b) = a, b, scales
    count = 0
    for entry in range(starts_a[row], starts_a[row + 1]):
        token, value = tokens[entry], values_a[entry]
        for other in range(starts_b[token], starts_b[token + 1]):
            col = cols[other]
            if seen[col] != row:
                seen[col] = row
                products[col] = 0.0
                met[count] = col
                count += 1
            products[col] += np.float64(value) * np.float64(values_b[other])
    for position in range(count):
        col = met[position]
        covariance = products[col] / (len(starts_b) - 1) - left_a[row] * left_b[col]
        products[col] = min(1.0, max(-1.0, covariance * (scale_a[row] * scale_b[col])))
    return count


@no_type_check
@numba.njit
def apart(row, col, scales):
    """The correlation of two features that are never active together."""
    left_a, left_b, scale_a, scale_b = scales
    return -left_a[row] * left_b[col] * (scale_a[row] * scale_b[col])


@no_type_check
@numba.njit
def _of(a, b, scales, rows, cols, order, found):
    """Correlations of the pairs (rows ascend), written to the places `order`."""
    features = len(scales[1])
    products, seen, met = np.zeros(features), np.full(features, -1), np.empty(features, np.uint32)
    for position in range(len(rows)):
        row, col = rows[position], cols[position]
        if position == 0 or row != rows[position - 1]:
            correlate(row, a, b, scales, products, seen, met)
        found[order[position]] = products[col] if seen[col] == row else apart(row, col, scales)


def _narrow(codes: sp.csr_array) -> sp.csr_array:
    """In single precision if that loses nothing, with places in 32 bits: scipy stacks to the widest that it is given."""
    values = codes.data.astype(np.float32)
    if not np.array_equal(values, codes.data):
        values = codes.data
    return sp.csr_array((values, codes.indices.astype(np.int32), codes.indptr.astype(np.int32)), shape=codes.shape)


def _stacked(parts: list[sp.csr_array]) -> sp.csr_array:
    """All parts below each other; the list is emptied."""
    found = sp.csr_array(sp.vstack(parts, format="csr"))
    parts.clear()
    return found


def _live(side: str, moments: FeatureMoments, minimum_firings: int) -> Bool[np.ndarray, " features"]:
    live = moments.live(minimum_firings)
    if not live.any():
        raise MatchError(
            f"matching needs features that vary and fire at least {minimum_firings} times; got none among the "
            f"{len(live)} of {side} on {moments.count} tokens. Use more tokens or another dictionary."
        )
    return live
