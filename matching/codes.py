"""Codes of both models in memory, in the two orders that correlations read them in: A's by feature, B's by token."""

# pyright: reportOptionalSubscript=false, reportGeneralTypeIssues=false
# (scipy.sparse carries no types: its shapes are taken for None)

from collections.abc import Iterator
from typing import NamedTuple, no_type_check

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, UInt32, UInt64

from matching.errors import MatchError
from matching.jit import jit
from matching.statistics import FeatureMoments, merged, of_segment, shift, shifted
from matching.stream import SEGMENT, Batches, segments

BYTES = 8  # an active feature of a token: its number, and its value in single precision


class Lists(NamedTuple):
    """Lists one after another: the n-th is `numbers` and `values` from starts[n] up to starts[n + 1].

    Places are unsigned: where they could be negative, numba checks every one of them, which is a third of all the time.
    """

    starts: UInt64[np.ndarray, " ends"]
    numbers: UInt32[np.ndarray, " entries"]
    values: Float[np.ndarray, " entries"]


class PairedCodes(NamedTuple):
    """Features active on most tokens are centred (`shift`), so that their mean does not eat their variance."""

    by_feature: Lists  # of A: a list for every feature, of the tokens where it is active
    by_token: Lists  # of B: a list for every token, of the features active there
    moments_a: FeatureMoments
    moments_b: FeatureMoments


def read(batches: Batches, budget_bytes: int) -> PairedCodes:
    """Every n-th segment of 1,024 tokens of a stream, with the least n that `budget_bytes` holds.

    A million tokens with 32 active features on either side take 0.5 GB and nothing on top while they are read: the stream is
    gone through once for what it holds, once for the moments and once for the codes. Values are kept in single precision where
    that loses nothing, as in codes of an SAE, others in half as much memory again.

    Raises: MatchError when the budget holds no segment, when the stream is another one when it starts anew, or from the stream.
    """
    active = sum(a.nnz + b.nnz for a, b in batches())
    stride = max(1, -(-active * BYTES // budget_bytes))

    def sampled() -> Iterator[tuple[sp.csr_array, sp.csr_array]]:
        return (pair for number, pair in enumerate(segments(batches)) if number % stride == 0)

    moments, single = [], [True, True]
    for pair in sampled():
        found = [of_segment(codes) for codes in pair]
        moments = [merged(*both) for both in zip(moments, found, strict=True)] if moments else found
        single = [yes and _is_single(codes.data) for yes, codes in zip(single, pair, strict=True)]
    moments_a, moments_b = moments
    used = BYTES * int(moments_a.firings.sum() + moments_b.firings.sum())
    if used > 2 * budget_bytes:
        raise MatchError(
            f"matching needs a budget that holds {SEGMENT:,} tokens, {used:,} bytes; got {budget_bytes:,}. Raise it."
        )

    shift_a, shift_b = shift(moments_a), shift(moments_b)
    starts = np.concatenate([[0], np.cumsum(_entries(moments_a))]).astype(np.uint64)
    by_feature = _empty(starts, int(starts[-1]), single[0] and not shift_a.any())
    starts = np.zeros(moments_b.count + 1, np.uint64)
    by_token = _empty(starts, int(_entries(moments_b).sum()), single[1] and not shift_b.any())
    free, tokens, entries = by_feature.starts[:-1].copy(), 0, 0
    for a, b in sampled():
        a, b = shifted(a, shift_a), shifted(b, shift_b)
        count, stop = a.shape[0], entries + b.nnz
        fits = tokens + count <= moments_b.count and stop <= len(by_token.values)
        if not (fits and _scatter(a.indptr, a.indices, a.data, tokens, free, by_feature)):
            break
        by_token.numbers[entries:stop], by_token.values[entries:stop] = b.indices, b.data
        by_token.starts[tokens + 1 : tokens + count + 1] = entries + b.indptr[1:]
        tokens, entries = tokens + count, stop
    if not (tokens == moments_b.count and entries == len(by_token.values) and (free == by_feature.starts[1:]).all()):
        raise MatchError(
            f"every pass must see the same stream; got another one after {tokens:,} of {moments_b.count:,} tokens. The callable "
            "must restart it."
        )
    return PairedCodes(by_feature, by_token, moments_a, moments_b)


def _is_single(values: np.ndarray) -> bool:
    return np.array_equal(values.astype(np.float32), values)


def _entries(moments: FeatureMoments) -> np.ndarray:
    """Of every feature: those that are centred have one on every token."""
    return np.where(shift(moments) != 0, moments.count, moments.firings)


def _empty(starts: UInt64[np.ndarray, " ends"], entries: int, single: bool) -> Lists:
    return Lists(starts, np.empty(entries, np.uint32), np.empty(entries, np.float32 if single else np.float64))


@no_type_check  # compiled code has types of its own
@jit()
def _scatter(starts, features, values, first_token, free, lists):
    """Adds a segment to the lists of its features, at the places `free`; False when a list is full."""
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
