"""Against scipy's dense solver, on small graphs of every shape and on larger hard ones."""

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from matching.augment import best_matching


def check(gain: np.ndarray) -> None:
    """The matching is optimal, its prices prove this, and unmatched columns have price 0. Gains of 0 or less are no
    edges.
    """
    rows, cols = np.nonzero(gain > 0)
    col_of, prices = best_matching(gain.shape, rows, cols, gain[rows, cols])
    positive = gain.clip(min=0)
    want = positive[linear_sum_assignment(positive, maximize=True)].sum()
    has = np.flatnonzero(col_of >= 0)
    assert len(np.unique(col_of[has])) == len(has)
    assert (gain[has, col_of[has]] > 0).all()
    assert gain[has, col_of[has]].sum() == pytest.approx(want, abs=1e-9)
    left = np.where(gain > 0, gain - prices, -np.inf).max(axis=1, initial=0.0)
    assert (prices >= 0).all()
    assert prices.sum() + left.sum() == pytest.approx(want, abs=1e-9)
    assert (prices[np.setdiff1d(np.arange(gain.shape[1]), col_of)] == 0).all()


@pytest.mark.parametrize("seed", range(10))
def test_small_graphs_of_every_shape_with_and_without_ties(seed: int):
    generator = np.random.default_rng(seed)
    for _ in range(60):
        shape = generator.integers(1, 14, 2)
        check(generator.uniform(-0.5, 1, shape))
        check(generator.integers(-1, 4, shape) / 4)


@pytest.mark.parametrize("seed", range(3))
def test_hard_cases(seed: int):
    generator = np.random.default_rng(seed)
    size = 150
    ramp = np.arange(1, size + 1) / size
    check(np.outer(ramp, ramp))  # all rows prefer the same columns in the same order
    check(np.outer(ramp, ramp[::-1])[generator.permutation(size)])
    check(np.full((size, size // 2), 0.3))  # only ties
    check(1e-9 * generator.random((size, size)) + 0.5)  # ties except in the last digits
    hubs = generator.uniform(-1, 0.2, (size, size))
    hubs[:, :5] += 0.7
    check(hubs)
    check(generator.random((40, 300)) ** 8)
    check(generator.random((300, 40)) ** 8)


def test_a_graph_without_edges():
    col_of, prices = best_matching((3, 2), np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
    assert (col_of == -1).all()
    assert (prices == 0).all()
