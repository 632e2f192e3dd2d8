"""Codes of both models in memory, in the order in which correlations read them: A's by feature, B's by token."""

# pyright: reportOptionalSubscript=false, reportGeneralTypeIssues=false
# (scipy.sparse carries no types: its shapes are taken for None)

from collections.abc import Iterable, Iterator
from typing import NamedTuple, no_type_check

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, UInt32, UInt64

from matching.errors import MatchError
from matching.jit import jit
from matching.statistics import FeatureMoments, moments_of, shift, shifted
from matching.stream import SEGMENT, Batches, segments

BYTES = 8  # for an active feature of a token: its number, and its value in single precision


class Lists(NamedTuple):
    """Concatenated lists: list n consists of `numbers` and `values` from starts[n] up to starts[n + 1].

    Indices are unsigned because numba checks signed ones for negative values, which takes a third of the whole time.
    """

    starts: UInt64[np.ndarray, " ends"]
    numbers: UInt32[np.ndarray, " entries"]
    values: Float[np.ndarray, " entries"]


class PairedCodes(NamedTuple):
    """Codes of A and B with their moments. Features active on most tokens are centred (`shift`) to keep precision."""

    by_feature: Lists  # codes of A: for every feature, the tokens where it is active
    by_token: Lists  # codes of B: for every token, the features that are active
    moments_a: FeatureMoments
    moments_b: FeatureMoments


def read(batches: Batches, budget_bytes: int) -> PairedCodes:
    """Reads every n-th segment of 1,024 tokens of a stream, with the smallest n for which the codes fit `budget_bytes`.

    A million tokens with 32 active features on either side take 0.5 GB, and reading needs no memory beyond that. The stream is
    read once for the moments, which give the number of codes; once more for the moments of the kept segments, if n > 1; and once
    for the codes. Values are stored in single precision where that is exact, as for codes of an SAE, and otherwise in double
    precision, which takes half as much memory again.

    Raises: MatchError when the budget holds no segment, when two passes over the stream differ, or from the stream.
    """
    single = [True, True]

    def all_segments() -> Iterator[tuple[sp.csr_array, sp.csr_array]]:
        for pair in segments(batches):
            single[:] = [exact and _is_single(codes.data) for exact, codes in zip(single, pair, strict=True)]
            yield pair

    moments_a, moments_b = moments_of(all_segments())
    stride = max(1, -(-_bytes(moments_a, moments_b) // budget_bytes))

    def sampled() -> Iterator[tuple[sp.csr_array, sp.csr_array]]:
        return (pair for number, pair in enumerate(segments(batches)) if number % stride == 0)

    if stride > 1:
        moments_a, moments_b = moments_of(sampled())
    if (used := _bytes(moments_a, moments_b)) > 2 * budget_bytes:
        raise MatchError(
            f"budget_bytes must hold {SEGMENT:,} tokens, which take {used:,}; got {budget_bytes:,}. Raise it."
        )

    shifts = shift(moments_a), shift(moments_b)
    starts = np.concatenate([[0], np.cumsum(_entries(moments_a))]).astype(np.uint64)
    by_feature = _empty(starts, int(starts[-1]), single[0] and not shifts[0].any())
    starts = np.zeros(moments_b.count + 1, np.uint64)
    by_token = _empty(starts, int(_entries(moments_b).sum()), single[1] and not shifts[1].any())
    _fill(by_feature, by_token, sampled(), shifts)
    return PairedCodes(by_feature, by_token, moments_a, moments_b)


def _fill(
    by_feature: Lists,
    by_token: Lists,
    pairs: Iterable[tuple[sp.csr_array, sp.csr_array]],
    shifts: tuple[np.ndarray, np.ndarray],
) -> None:
    free, tokens, entries = by_feature.starts[:-1].copy(), 0, 0
    for pair in pairs:
        a, b = (shifted(codes, by) for codes, by in zip(pair, shifts, strict=True))
        count, stop = tokens + a.shape[0], entries + b.nnz
        fits = count < len(by_token.starts) and stop <= len(by_token.values)
        if not (fits and _scatter(a.indptr, a.indices, a.data, tokens, free, by_feature)):
            break
        by_token.numbers[entries:stop], by_token.values[entries:stop] = b.indices, b.data
        by_token.starts[tokens + 1 : count + 1] = entries + b.indptr[1:]
        tokens, entries = count, stop
    whole = tokens == len(by_token.starts) - 1 and entries == len(by_token.values)
    if not (whole and (free == by_feature.starts[1:]).all()):
        raise MatchError(
            f"every pass must see the same stream; got a different one after {tokens:,} of {len(by_token.starts) - 1:,} tokens. "
            "`batches` must start the same stream each time it is called."
        )


def _bytes(*moments: FeatureMoments) -> int:
    return BYTES * sum(int(side.firings.sum()) for side in moments)


def _is_single(values: np.ndarray) -> bool:
    with np.errstate(over="ignore"):  # what overflows differs
        return np.array_equal(values.astype(np.float32), values)


def _entries(moments: FeatureMoments) -> np.ndarray:
    """Number of entries of every feature; a centred feature has one on every token."""
    return np.where(shift(moments) != 0, moments.count, moments.firings)


def _empty(starts: UInt64[np.ndarray, " ends"], entries: int, single: bool) -> Lists:
    return Lists(starts, np.empty(entries, np.uint32), np.empty(entries, np.float32 if single else np.float64))


@no_type_check  # compiled code has types of its own
@jit()
def _scatter(starts, features, values, first_token, free, lists):
    """Adds a segment to the lists of its features, each at its next index `free`; False when a list is full."""
    for token in range(len(starts) - 1):
        for entry in range(starts[token], starts[token + 1]):
            feature = features[entry]
            place = free[feature]
            if place >= lists.starts[feature + 1]:
                return False
            lists.numbers[place] = first_token + token
            lists.values[place] = values[entry]
            free[feature] = place + np.uint64(1)
    return True
