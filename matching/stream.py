"""The stream of paired codes: checked, in float64, and cut at fixed tokens so that sums do not depend on the batch size."""

# pyright: reportOptionalSubscript=false, reportGeneralTypeIssues=false
# (scipy.sparse carries no types: its shapes are taken for None)

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import scipy.sparse as sp

from matching.errors import MatchError

Codes = sp.csr_array | sp.csr_matrix
"""Feature activations [tokens, features] of one batch."""

Batches = Callable[[], Iterable[tuple[Codes, Codes]]]
"""Starts the stream from its beginning: (codes of A, codes of B) on the same tokens, batch after batch."""

# Number of tokens that are summed at once. A co-activation product holds at most SEGMENT · k_A · k_B entries of about 32 bytes.
SEGMENT = 1024
LARGEST = np.float64(1e150)  # the squares of larger numbers are not finite


def segments(batches: Batches) -> Iterator[tuple[sp.csr_array, sp.csr_array]]:
    """The stream as float64 codes of exactly SEGMENT tokens each (the last segment may be shorter).

    Raises: MatchError when the stream is empty, when A and B differ in tokens, when the number of features changes, or
        when a code is NaN or infinite.
    """
    pending: list[tuple[sp.csr_array, sp.csr_array]] = []
    waiting, tokens_seen = 0, 0
    widths = None
    for number, (a, b) in enumerate(batches()):
        widths = widths or (a.shape[1], b.shape[1])
        _check(a, b, widths, number)
        start, tokens = 0, a.shape[0]
        tokens_seen += tokens
        while waiting + tokens - start >= SEGMENT:
            stop = start + SEGMENT - waiting
            yield _joined([*pending, (_cut(a, start, stop), _cut(b, start, stop))])
            pending, waiting, start = [], 0, stop
        if start < tokens:
            pending.append((_cut(a, start, tokens), _cut(b, start, tokens)))
            waiting += tokens - start
    if waiting:
        yield _joined(pending)
    elif not tokens_seen:
        raise MatchError("matching needs the codes of at least one token; got an empty stream. Check the text.")


def _check(a: Codes, b: Codes, widths: tuple[int, int], number: int) -> None:
    if a.shape[0] != b.shape[0]:
        raise MatchError(
            f"codes of A and B must cover the same tokens; got {a.shape[0]} and {b.shape[0]} in batch {number}. "
            "Encode both from one token stream."
        )
    if (a.shape[1], b.shape[1]) != widths:
        raise MatchError(
            f"the number of features must not change along the stream; got {a.shape[1]} and {b.shape[1]} in batch "
            f"{number} after {widths[0]} and {widths[1]}. Encode every batch with the same two dictionaries."
        )
    for side, codes in (("A", a), ("B", b)):
        if not (np.abs(codes.data) < LARGEST).all():
            raise MatchError(
                f"codes must be finite; got NaN, infinity or more than {LARGEST:g} in the codes of {side}, batch {number}. "
                "Drop those tokens or check the model's precision."
            )


def _cut(codes: Codes, start: int, stop: int) -> sp.csr_array:
    """Tokens start to stop − 1 in float64; column indices may be a view of the batch's."""
    ends = codes.indptr[start : stop + 1]
    entries = slice(ends[0], ends[-1])
    parts = codes.data[entries].astype(np.float64), codes.indices[entries], ends - ends[0]
    return sp.csr_array(parts, shape=(stop - start, codes.shape[1]))


def _joined(parts: list[tuple[sp.csr_array, sp.csr_array]]) -> tuple[sp.csr_array, sp.csr_array]:
    a, b = zip(*parts, strict=True)
    return _cleaned(a), _cleaned(b)


def _cleaned(parts: tuple[sp.csr_array, ...]) -> sp.csr_array:
    """One matrix without explicit zeros or repeated entries; a copy if there are any, since they are removed in place."""
    codes = parts[0] if len(parts) == 1 else sp.csr_array(sp.vstack(parts, format="csr"))
    if not (codes.has_canonical_format and codes.data.all()):
        codes = codes.copy()
        codes.sum_duplicates()
        codes.eliminate_zeros()
    return codes
