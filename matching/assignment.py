"""One-to-one matching that maximises Σ (correlation − threshold)₊: on a sparse graph, and dense as the exact reference."""

import numpy as np
from jaxtyping import Float64
from scipy.optimize import linear_sum_assignment

from matching.augment import best_matching
from matching.errors import MatchError
from matching.null import draw_columns
from matching.types import Alternatives, Candidates, Pairs


def assign(candidates: Candidates, *, threshold: float = 0.0) -> Pairs:
    """Best one-to-one matching on the candidate graph; features without a partner above `threshold` stay unmatched.

    Raises: MatchError when the threshold is outside [−1, 1).
    """
    return assign_with_prices(candidates, threshold)[0]


def assign_with_prices(candidates: Candidates, threshold: float = 0.0) -> tuple[Pairs, Float64[np.ndarray, " cols"]]:
    """The result of `assign`, and prices of the B-features: nonnegative, and 0 for unmatched features.

    After subtracting prices, no A-feature gains more from another partner on the graph than from its own, or from none.
    They are the dual variables of the assignment problem.
    """
    _check_threshold(threshold)
    good = candidates.correlation > threshold
    rows, cols, correlation = candidates.rows[good], candidates.cols[good], candidates.correlation[good]
    col_of, prices = best_matching(candidates.shape, rows, cols, correlation - threshold)
    matched = np.flatnonzero(col_of[rows] == cols)
    return _pairs(rows[matched], cols[matched], correlation[matched], candidates.alternatives), prices


def assign_dense(
    correlation: Float64[np.ndarray, "rows cols"],
    *,
    generator: np.random.Generator | None = None,
    threshold: float = 0.0,
    alternatives: int = 16,
) -> Pairs:
    """The exact optimum over all pairs. NaN marks pairs that must not be matched.

    `generator` draws the random partners of the null scores; None: one with seed 0. With the same generator state and
    number of alternatives as in `candidates`, null scores are the same. It takes cubic time and memory for two more
    copies of the matrix.

    Raises: MatchError when the threshold is outside [−1, 1).
    Source: Crouse 2016, IEEE TAES 52 (scipy's `linear_sum_assignment`).

    The best partner of both rows is column 0; the sum is highest when row 0 takes the other:

    >>> import numpy as np, matching
    >>> pairs = matching.assign_dense(np.array([[0.9, 0.8], [0.7, 0.1]]))
    >>> pairs.cols.tolist(), pairs.scores.tolist()
    ([1, 0], [0.8, 0.7])
    """
    _check_threshold(threshold)
    known = np.isfinite(correlation)
    rows, cols = linear_sum_assignment(np.where(known, correlation, threshold).clip(min=threshold), maximize=True)
    kept = known[rows, cols] & (correlation[rows, cols] > threshold)
    rows, cols = rows[kept].astype(np.int64), cols[kept].astype(np.int64)
    draws = generator or np.random.default_rng(0)
    drawn = draw_columns(len(correlation), np.flatnonzero(known.any(axis=0)), alternatives, draws)
    drawn_correlation = np.take_along_axis(np.where(known, correlation, -np.inf), drawn, axis=1)
    return _pairs(rows, cols, correlation[rows, cols], Alternatives(drawn, drawn_correlation))


def _pairs(rows: np.ndarray, cols: np.ndarray, scores: np.ndarray, alternatives: Alternatives) -> Pairs:
    return Pairs(rows, cols, scores, alternatives.best(rows, cols))


def _check_threshold(threshold: float) -> None:
    if not -1.0 <= threshold < 1.0:
        raise MatchError(
            f"threshold must be a correlation in [-1, 1); got {threshold}. Use 0 for all positive correlations."
        )
