"""The candidate graph: the most correlated partners of every feature."""

from collections.abc import Callable, Sequence
from threading import Lock

import numpy as np
from jaxtyping import Float64, Int64

from matching.compiled import best_partners, merge_columns
from matching.correlations import Correlations
from matching.null import draw_columns
from matching.threads import in_parts, in_pieces
from matching.types import Alternatives, Candidates


def candidates(
    correlations: Correlations,
    *,
    generator: np.random.Generator,
    top: int = 16,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Candidates:
    """The graph of the `top` most correlated B-features of every A-feature, and vice versa, among positive correlations.

    The result is exact: all pairs that are active on a common token are considered. It does not depend on how the stream was
    cut into batches. Ties go to the lower index. For the null, `top` random partners per A-feature are drawn from `generator`
    and scored as well (`Alternatives`). `progress` gets how many A-features are done, and of how many.

    Memory in addition to the codes: 16 bytes · top per feature of A, and the same per feature of B for every thread.
    """
    rows, cols = correlations.shape
    drawn = draw_columns(rows, np.flatnonzero(correlations.live_b), top, generator)
    drawn_correlation = np.full(drawn.shape, -np.inf)
    best_cols, of_row = np.full((rows, top), -1), np.zeros((rows, top))
    done, one_at_a_time = 0, Lock()
    progress(done, rows)

    def part(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        nonlocal done
        best_rows, of_col = np.full((cols, top), -1), np.zeros((cols, top))
        arrays = correlations.arrays()
        for first, last in in_pieces(start, stop, correlations.cost):
            best_partners(*arrays, first, last, best_cols, of_row, best_rows, of_col, drawn, drawn_correlation)
            with one_at_a_time:
                done += last - first
                progress(done, rows)
        return best_rows, of_col

    (best_rows, of_col), *others = in_parts(part, correlations.cost, correlations.threads)
    for other in others:
        merge_columns(best_rows, of_col, *other)
    drawn_correlation[~correlations.live_a] = -np.inf

    by_row, by_col = best_cols >= 0, best_rows >= 0
    edges = (
        (np.nonzero(by_row)[0], best_cols[by_row], of_row[by_row]),
        (best_rows[by_col], np.nonzero(by_col)[0], of_col[by_col]),
    )
    return _graph(correlations, _union(edges, cols), Alternatives(drawn, drawn_correlation), top)


def with_edges(
    candidates: Candidates,
    correlations: Correlations,
    rows: Int64[np.ndarray, " edges"],
    cols: Int64[np.ndarray, " edges"],
    correlation: Float64[np.ndarray, " edges"],
) -> Candidates:
    """The graph with additional edges; existing edges stay unchanged."""
    known = candidates.rows, candidates.cols, candidates.correlation
    edges = _union([known, (rows, cols, correlation)], candidates.shape[1])
    return _graph(correlations, edges, candidates.alternatives, candidates.complete)


_Edges = tuple[np.ndarray, np.ndarray, np.ndarray]
"""rows, cols, correlations."""


def _graph(correlations: Correlations, edges: _Edges, alternatives: Alternatives, complete: int) -> Candidates:
    return Candidates(correlations.shape, *edges, correlations.co_moments(*edges), alternatives, complete)


def _union(found: Sequence[_Edges], width: int) -> _Edges:
    # One number per edge: separate rows and columns of millions of edges would be in memory twice.
    keys, first = np.unique(np.concatenate([rows * width + cols for rows, cols, _ in found]), return_index=True)
    return keys // width, keys % width, np.concatenate([values for *_, values in found])[first]
