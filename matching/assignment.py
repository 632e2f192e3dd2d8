"""One-to-one matching that maximises Σ (correlation − threshold)₊: sparse at scale, dense as the exact reference."""

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float64
from scipy.optimize import linear_sum_assignment
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

from matching.errors import MatchError
from matching.null import draw_columns
from matching.types import Alternatives, Candidates, Pairs


def assign(candidates: Candidates, *, threshold: float = 0.0) -> Pairs:
    """Best one-to-one matching on the candidate graph; features without a partner above `threshold` stay unmatched.

    Every row gets a private dummy column worth exactly the threshold. So a full matching always exists, however badly
    the graph is connected, and a row that ends on its dummy is unmatched.

    Raises: MatchError when the threshold is outside [−1, 1).
    Source: Jonker & Volgenant 1987, Computing 38 (scipy's LAPJVsp).
    """
    _check_threshold(threshold)
    good = candidates.correlation > threshold
    rows, row_of = np.unique(candidates.rows[good], return_inverse=True)
    cols, col_of = np.unique(candidates.cols[good], return_inverse=True)
    if not len(rows):
        return _pairs(rows, rows, np.empty(0), candidates.alternatives)
    # scipy drops explicit zeros from the graph: 1 is added to every edge, dummies included, which moves no optimum.
    gain = candidates.correlation[good] - threshold + 1.0
    dummies = sp.eye_array(len(rows), format="csr")
    graph = sp.hstack([sp.csr_array((gain, (row_of, col_of)), shape=(len(rows), len(cols))), dummies], format="csr")
    matched_rows, matched_cols = min_weight_full_bipartite_matching(graph, maximize=True)
    real = matched_cols < len(cols)
    rows, cols = rows[matched_rows[real]], cols[matched_cols[real]]
    edges = np.searchsorted(candidates.rows * candidates.shape[1] + candidates.cols, rows * candidates.shape[1] + cols)
    return _pairs(rows, cols, candidates.correlation[edges], candidates.alternatives)


def assign_dense(
    correlation: Float64[np.ndarray, "rows cols"],
    *,
    generator: np.random.Generator,
    threshold: float = 0.0,
    alternatives: int = 16,
) -> Pairs:
    """The exact optimum over all pairs; NaN marks what must not be matched. Cubic time, two more copies of the matrix.

    The same generator state and number of alternatives as in `candidates` give the same null scores.

    Raises: MatchError when the threshold is outside [−1, 1).
    Source: Crouse 2016, IEEE TAES 52 (scipy's `linear_sum_assignment`).
    """
    _check_threshold(threshold)
    known = np.isfinite(correlation)
    rows, cols = linear_sum_assignment(np.where(known, correlation, threshold).clip(min=threshold), maximize=True)
    kept = known[rows, cols] & (correlation[rows, cols] > threshold)
    rows, cols = rows[kept].astype(np.int64), cols[kept].astype(np.int64)
    drawn = draw_columns(len(correlation), np.flatnonzero(known.any(axis=0)), alternatives, generator)
    drawn_correlation = np.take_along_axis(np.where(known, correlation, -np.inf), drawn, axis=1)
    return _pairs(rows, cols, correlation[rows, cols], Alternatives(drawn, drawn_correlation))


def _pairs(rows: np.ndarray, cols: np.ndarray, scores: np.ndarray, alternatives: Alternatives) -> Pairs:
    return Pairs(rows, cols, scores, alternatives.best(rows, cols))


def _check_threshold(threshold: float) -> None:
    if not -1.0 <= threshold < 1.0:
        raise MatchError(f"the threshold must be a correlation in [-1, 1); got {threshold}. Use 0 to keep every gain.")
