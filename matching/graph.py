"""The candidate graph: for every feature its best-correlated partners, found block by block within a memory budget."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float64, Int64

from matching.correlations import Correlations
from matching.null import draw_columns
from matching.types import Alternatives, Candidates

# Entries looked at together while selecting; bounds the temporaries of a selection to some 30 MB.
SELECTION = 2**20


def candidates(correlations: Correlations, *, generator: np.random.Generator, top: int = 16) -> Candidates:
    """The `top` best-correlated B-features of every A-feature, and the `top` best A-features of every B-feature.

    Exact: every correlation is looked at. The result is the same, bit for bit, for any memory and any cut of the stream into
    batches. Ties go to the lower index. With `top` as large as both feature sets the graph is complete. For the null,
    `top` random partners per A-feature are drawn from `generator` and scored too (`Alternatives`).

    Memory beside the blocks: ~70 MB of temporaries at k = 32 (they grow with k²), 16 bytes · top per feature, 32 bytes per edge.

    Raises: MatchError from the correlations.
    """
    rows, cols = correlations.shape
    drawn = draw_columns(rows, np.flatnonzero(correlations.live()[1]), top, generator)
    drawn_correlation = np.empty(drawn.shape)

    by_row: list[_Edges] = []
    by_col = _empty()
    for start, block in correlations.blocks():
        stop = start + len(block)
        drawn_correlation[start:stop] = np.take_along_axis(block, drawn[start:stop], axis=1)
        by_row.append(_best_of_rows(block, start, top))
        by_col = _best_of_cols(block, start, by_col, top)
        del block  # the next one must not be allocated beside it
    return _graph(correlations, _union([*by_row, by_col], cols), Alternatives(drawn, drawn_correlation))


def with_edges(
    candidates: Candidates,
    correlations: Correlations,
    rows: Int64[np.ndarray, " edges"],
    cols: Int64[np.ndarray, " edges"],
    correlation: Float64[np.ndarray, " edges"],
) -> Candidates:
    """The graph with further edges; those it has already stay as they are."""
    known = candidates.rows, candidates.cols, candidates.correlation
    edges = _union([known, (rows, cols, correlation)], candidates.shape[1])
    return _graph(correlations, edges, candidates.alternatives)


_Edges = tuple[np.ndarray, np.ndarray, np.ndarray]
"""rows, cols, correlations."""


def _graph(correlations: Correlations, edges: _Edges, alternatives: Alternatives) -> Candidates:
    rows, cols, correlation = edges
    moments_a, moments_b = correlations.moments_a, correlations.moments_b
    covariance = correlation * np.sqrt(moments_a.variance)[rows] * np.sqrt(moments_b.variance)[cols]
    co_moment = covariance + moments_a.mean[rows] * moments_b.mean[cols]
    return Candidates(correlations.shape, rows, cols, correlation, co_moment, alternatives)


def _empty() -> _Edges:
    return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)


def _best_of_rows(block: Float64[np.ndarray, "block cols"], start: int, top: int) -> _Edges:
    found = []
    for part in _chunks(len(block), SELECTION // block.shape[1]):
        values = block[part]
        rows, cols = np.nonzero(_top_mask(values, top) & np.isfinite(values))
        found.append((rows + part.start + start, cols, values[rows, cols]))
    return _concatenated(found)


def _best_of_cols(block: Float64[np.ndarray, "block cols"], start: int, kept: _Edges, top: int) -> _Edges:
    """The best `top` rows of each column among those kept from earlier blocks and this block's."""
    rows, cols, values = (np.concatenate(parts) for parts in zip(kept, _best_within(block, start, top), strict=True))
    order = np.lexsort((rows, -values, cols))
    rank = np.arange(len(order)) - np.searchsorted(cols[order], cols[order])
    order = order[rank < top]
    return rows[order], cols[order], values[order]


def _best_within(block: Float64[np.ndarray, "block cols"], start: int, top: int) -> _Edges:
    found = []
    for part in _chunks(block.shape[1], SELECTION // len(block)):
        values = np.ascontiguousarray(block[:, part].T)
        cols, rows = np.nonzero(_top_mask(values, top) & np.isfinite(values))
        found.append((rows + start, cols + part.start, values[cols, rows]))
    return _concatenated(found)


def _top_mask(values: Float64[np.ndarray, "lists entries"], top: int) -> Bool[np.ndarray, "lists entries"]:
    """True at the `top` largest entries of every list; ties go to the lower index."""
    if values.shape[1] <= top:
        return np.ones(values.shape, bool)
    cut = np.partition(values, -top, axis=1)[:, -top, None]
    above, tied = values > cut, values == cut
    spare = top - above.sum(axis=1, keepdims=True)
    return above | (tied & (np.cumsum(tied, axis=1) <= spare))


def _chunks(length: int, size: int) -> Iterator[slice]:
    size = max(1, size)
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def _concatenated(found: list[_Edges]) -> _Edges:
    rows, cols, values = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return rows, cols, values


def _union(found: list[_Edges], width: int) -> _Edges:
    rows, cols, values = _concatenated(found)
    keys, first = np.unique(rows * width + cols, return_index=True)
    return keys // width, keys % width, values[first]
