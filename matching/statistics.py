"""Streamed float64 moments of two feature sets on the same tokens, and their correlations."""

# pyright: reportOptionalSubscript=false, reportGeneralTypeIssues=false
# (scipy.sparse carries no types: its shapes are taken for None)

from collections.abc import Iterable
from dataclasses import dataclass
from typing import no_type_check

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float64, Int64

from matching.errors import MatchError
from matching.jit import jit
from matching.stream import Batches, segments

# A standard deviation below this share of the root mean square is rounding error: the feature is constant.
CONSTANT = 1e-10


@dataclass(frozen=True)
class FeatureMoments:
    """Moments of every feature over `count` tokens. `variance` is the population variance; `firings` counts tokens with z ≠ 0."""

    count: int
    mean: Float64[np.ndarray, " features"]
    variance: Float64[np.ndarray, " features"]
    firings: Int64[np.ndarray, " features"]

    @property
    def second(self) -> Float64[np.ndarray, " features"]:
        """E[z²]."""
        return self.variance + self.mean**2

    @property
    def frequency(self) -> Float64[np.ndarray, " features"]:
        """Share of tokens on which the feature is active."""
        return self.firings / self.count

    def live(self, minimum_firings: int) -> Bool[np.ndarray, " features"]:
        """Features whose correlation is meaningful: they are not constant and are active on `minimum_firings` tokens or more.

        The minimum is needed because two features that are active once, on the same token, correlate perfectly.
        """
        varies = self.variance > CONSTANT**2 * self.second
        return varies & (self.firings >= minimum_firings)


class RunningMoments:
    """Moments of features over codes that arrive in segments.

    Moments over the tokens where a feature is active are updated token by token, relative to its first value. Tokens where it is
    inactive are added at the end. Therefore a segment costs only its active features, a large mean does not reduce the
    precision of the variance, and the result does not depend on the boundaries of segments.

    Source: Welford 1962, Technometrics 4; Chan, Golub, LeVeque 1983, The American Statistician 37 (joining).
    """

    def __init__(self, features: int):
        self.tokens = 0
        self.firings = np.zeros(features, np.int64)
        self.first, self.mean, self.spread = np.zeros((3, features))

    def add(self, codes: sp.csr_array) -> None:
        """Codes [tokens, features] in float64, without explicit zeros or repeated entries."""
        _add(codes.indices, codes.data, self.firings, self.first, self.mean, self.spread)
        self.tokens += codes.shape[0]

    def result(self) -> FeatureMoments:
        share, mean = self.firings / self.tokens, self.first + self.mean
        variance = self.spread / self.tokens + share * (1 - share) * mean**2
        return FeatureMoments(self.tokens, share * mean, variance, self.firings)


@no_type_check  # compiled code has types of its own
@jit()
def _add(features, values, firings, first, mean, spread):
    for entry in range(len(values)):
        feature = features[entry]
        if firings[feature] == 0:
            first[feature] = values[entry]
        firings[feature] += 1
        value = values[entry] - first[feature]
        before = value - mean[feature]
        mean[feature] += before / firings[feature]
        spread[feature] += before * (value - mean[feature])


def feature_moments(batches: Batches) -> tuple[FeatureMoments, FeatureMoments]:
    """Moments of A's and of B's features in one pass.

    Raises: MatchError from the stream (`segments`).
    """
    return moments_of(segments(batches))


def moments_of(pairs: Iterable[tuple[sp.csr_array, sp.csr_array]]) -> tuple[FeatureMoments, FeatureMoments]:
    """Moments of both sides of a sequence of segments (codes of A, codes of B)."""
    running: list[RunningMoments] = []
    for pair in pairs:
        running = running or [RunningMoments(codes.shape[1]) for codes in pair]
        for moments, codes in zip(running, pair, strict=True):
            moments.add(codes)
    a, b = (moments.result() for moments in running)
    return a, b


def correlation_matrix(
    batches: Batches,
    moments_a: FeatureMoments,
    moments_b: FeatureMoments,
    *,
    minimum_firings: int = 10,
    budget_bytes: int = 2**30,
) -> Float64[np.ndarray, "rows cols"]:
    """Dense Pearson correlations [features A, features B], NaN where a feature is not live: the reference for `Correlations`.

    Features that are active on most tokens are centred before the product, which at most doubles their entries. For the
    others, means are subtracted afterwards, which costs at most one bit of precision: for a feature active on a share f of
    the tokens, mean² / variance ≤ f / (1 − f) ≤ 1.

    Raises: MatchError when the matrix is larger than `budget_bytes`, or from the stream.
    """
    rows, cols = len(moments_a.mean), len(moments_b.mean)
    if 8 * rows * cols > budget_bytes:
        raise MatchError(
            f"budget_bytes must be at least {8 * rows * cols:,} for dense correlations of {rows} x {cols} features; got "
            f"{budget_bytes:,}. Use the sparse graph (`candidates`) or raise it."
        )
    shift_a, shift_b = shift(moments_a), shift(moments_b)
    found = np.zeros((rows, cols))
    flat = found.reshape(-1)
    tokens = 0
    for a, b in segments(batches):
        _check_widths(a, b, moments_a, moments_b)
        product = shifted(a, shift_a).T.tocsr() @ shifted(b, shift_b)
        np.add.at(flat, np.repeat(np.arange(rows), np.diff(product.indptr)) * cols + product.indices, product.data)
        tokens += a.shape[0]
    _check_tokens(tokens, moments_a, moments_b)
    _normalise(found, tokens, moments_a, moments_b)
    found[~moments_a.live(minimum_firings)] = np.nan
    found[:, ~moments_b.live(minimum_firings)] = np.nan
    return found


def _normalise(
    products: Float64[np.ndarray, "rows cols"], tokens: int, moments_a: FeatureMoments, moments_b: FeatureMoments
) -> None:
    """Turns sums of products into correlations in place, row by row, so that there is no second matrix in memory."""
    left_a, left_b = moments_a.mean - shift(moments_a), moments_b.mean - shift(moments_b)
    scale_a, scale_b = inverse_deviation(moments_a), inverse_deviation(moments_b)
    for row, left, scale in zip(products, left_a, scale_a, strict=True):
        row /= tokens
        row -= left * left_b
        row *= scale * scale_b
        np.clip(row, -1.0, 1.0, out=row)


def shift(moments: FeatureMoments) -> Float64[np.ndarray, " features"]:
    """What to subtract before products: the mean of features active on most tokens, 0 for others. It preserves precision."""
    return np.where(moments.frequency > 0.5, moments.mean, 0.0)


def shifted(codes: sp.csr_array, shift: Float64[np.ndarray, " features"]) -> sp.csr_array:
    """Codes − shift. Columns with a nonzero shift become dense, explicit zeros included; the others stay unchanged."""
    dense = np.flatnonzero(shift)
    if not dense.size:
        return codes
    tokens = codes.shape[0]
    centred = codes[:, dense].toarray() - shift[dense]
    rest = (shift == 0)[codes.indices]
    values = np.concatenate([codes.data[rest], centred.reshape(-1)])
    rows = np.concatenate([codes.tocoo().row[rest], np.repeat(np.arange(tokens), len(dense))])
    columns = np.concatenate([codes.indices[rest], np.tile(dense, tokens)])
    return sp.csr_array(sp.coo_array((values, (rows, columns)), shape=codes.shape).tocsr())


def inverse_deviation(moments: FeatureMoments) -> Float64[np.ndarray, " features"]:
    """1 / standard deviation; 0 for constant features."""
    varies = moments.live(minimum_firings=0)
    return np.where(varies, 1 / np.sqrt(np.where(varies, moments.variance, 1.0)), 0.0)


def _check_widths(a: sp.csr_array, b: sp.csr_array, moments_a: FeatureMoments, moments_b: FeatureMoments) -> None:
    need = (len(moments_a.mean), len(moments_b.mean))
    if (a.shape[1], b.shape[1]) != need:
        raise MatchError(
            f"the stream must have the features of the moments, {need[0]} and {need[1]}; got {a.shape[1]} and "
            f"{b.shape[1]}. Recompute `feature_moments` from this stream."
        )


def _check_tokens(tokens: int, moments_a: FeatureMoments, moments_b: FeatureMoments) -> None:
    if not tokens == moments_a.count == moments_b.count:
        raise MatchError(
            f"every pass must see the tokens of the moments, {moments_a.count} and {moments_b.count}; got {tokens}. "
            "`batches` must start the same stream each time it is called."
        )
