"""Against three oracles: all permutations, the dense solver, a planted permutation."""

from itertools import permutations

import numpy as np
import pytest

from codes import planted, stream_of
from graphs import graph_of
from matching.assignment import assign, assign_dense
from matching.correlations import Correlations
from matching.errors import MatchError
from matching.graph import candidates
from matching.null import misaligned
from matching.statistics import correlation_matrix, feature_moments
from matching.types import Pairs


def dense(correlation: np.ndarray, threshold: float = 0.0) -> Pairs:
    return assign_dense(correlation, generator=np.random.default_rng(0), threshold=threshold)


def gain(pairs: Pairs, threshold: float) -> float:
    return float((pairs.scores - threshold).sum())


def best_gain(correlation: np.ndarray, threshold: float) -> float:
    if correlation.shape[0] > correlation.shape[1]:
        correlation = correlation.T
    value = np.nan_to_num(correlation - threshold, nan=0.0).clip(min=0)
    rows = np.arange(len(value))
    return max(float(value[rows, list(cols)].sum()) for cols in permutations(range(value.shape[1]), len(value)))


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.4])
@pytest.mark.parametrize("shape", [(1, 1), (4, 4), (6, 6), (3, 7), (7, 4)])
def test_both_solvers_reach_the_best_of_all_permutations(shape: tuple[int, int], threshold: float):
    for seed in range(8):
        correlation = np.random.default_rng(seed).uniform(-1, 1, shape)
        want = best_gain(correlation, threshold)
        assert gain(assign(graph_of(correlation), threshold=threshold), threshold) == pytest.approx(want, abs=1e-12)
        assert gain(dense(correlation, threshold), threshold) == pytest.approx(want, abs=1e-12)


def test_sparse_equals_dense_on_a_complete_graph_from_a_stream():
    a, b, _ = planted(1200, 40, 0, noise=0.7)
    a = a[:, :30]
    batches = stream_of(a, b)
    moments = feature_moments(batches)
    graph = candidates(Correlations.read(batches), generator=np.random.default_rng(1), top=40)
    sparse = assign(graph, threshold=0.05)
    reference = assign_dense(
        correlation_matrix(batches, *moments), generator=np.random.default_rng(1), threshold=0.05, alternatives=40
    )
    for field in ("rows", "cols", "scores", "null_scores"):
        np.testing.assert_allclose(getattr(sparse, field), getattr(reference, field), atol=1e-13)


def test_a_planted_permutation_is_recovered_and_the_nulls_are_low():
    a, b, partner = planted(4000, 300, 1, noise=0.4)
    batches = stream_of(a, b)
    pairs = assign(candidates(Correlations.read(batches), generator=np.random.default_rng(0)), threshold=0.1)
    assert (partner[pairs.rows] == pairs.cols).sum() >= 0.99 * 300
    assert pairs.scores.mean() > 0.4
    assert pairs.null_scores.mean() < 0.06
    assert (pairs.scores > pairs.null_scores).all()
    # the strictest null: the optimum over all pairs, with shuffled tokens
    chance = assign(candidates(Correlations.read(misaligned(batches, 0)), generator=np.random.default_rng(0)))
    assert chance.scores.mean() < 0.1
    assert (partner[chance.rows] == chance.cols).mean() < 0.05


def test_with_unequal_numbers_of_features_those_without_a_partner_stay_unmatched():
    a, b, partner = planted(3000, 60, 2)
    batches = stream_of(a, b[:, :40])
    pairs = assign(candidates(Correlations.read(batches), generator=np.random.default_rng(0)), threshold=0.2)
    assert set(pairs.rows) == set(np.flatnonzero(partner < 40))
    assert (partner[pairs.rows] == pairs.cols).all()


def test_pairs_at_or_below_the_threshold_are_rejected():
    correlation = np.array([[0.9, 0.0], [0.0, 0.3]])
    for solve in (lambda t: assign(graph_of(correlation), threshold=t), lambda t: dense(correlation, t)):
        assert solve(0.0).rows.tolist() == [0, 1]
        assert solve(0.3).rows.tolist() == [0]
        assert solve(0.9).rows.tolist() == []


def test_rejecting_a_pair_frees_the_better_partner():
    # matching both rows would cost row 0 its partner; above 0.5, only (1, 0) is better than no pair
    correlation = np.array([[0.8, 0.45], [0.95, 0.1]])
    pairs = assign(graph_of(correlation), threshold=0.5)
    assert (pairs.rows.tolist(), pairs.cols.tolist()) == ([1], [0])


def test_an_edge_of_cost_zero_is_kept():
    # scipy drops explicit zeros: with gain correlation − threshold alone, or cost 1 − correlation, these would vanish
    pairs = assign(graph_of(np.eye(3)), threshold=-1.0)
    assert pairs.cols.tolist() == [0, 1, 2]
    pairs = assign(graph_of(np.array([[0.0, -0.5], [-0.5, 0.0]])), threshold=-1.0)
    assert pairs.cols.tolist() == [0, 1]


def test_ties_are_broken_into_a_complete_and_reproducible_matching():
    correlation = np.full((6, 6), 0.5)
    first, second = assign(graph_of(correlation)), assign(graph_of(correlation))
    assert sorted(first.cols) == list(range(6))
    np.testing.assert_array_equal(first.cols, second.cols)


def test_a_hub_goes_to_one_row_only():
    correlation = np.full((50, 50), 0.01)
    correlation[:, 7] = np.linspace(0.5, 0.9, 50)  # the best partner of all rows
    pairs = assign(graph_of(correlation), threshold=0.2)
    assert (pairs.rows.tolist(), pairs.cols.tolist()) == ([49], [7])


def test_rows_that_share_all_candidates_do_not_make_the_problem_infeasible():
    correlation = np.full((20, 30), np.nan)
    correlation[:, :3] = np.random.default_rng(3).uniform(0.2, 1.0, (20, 3))  # 20 rows with 3 candidate columns
    pairs = assign(graph_of(correlation))
    assert len(pairs) == 3
    assert gain(pairs, 0.0) == pytest.approx(gain(dense(correlation), 0.0))


def test_negative_correlations_are_not_matched():
    correlation = np.array([[-0.2, -0.9], [0.4, -0.1]])
    assert assign(graph_of(correlation)).rows.tolist() == dense(correlation).rows.tolist() == [1]


def test_dead_features_are_never_matched():
    a, b, _ = planted(1500, 20, 4)
    a[:, 3] = 0
    b[:, 5] = 2.5
    batches = stream_of(a, b)
    moments = feature_moments(batches)
    sparse = assign(candidates(Correlations.read(batches), generator=np.random.default_rng(0)))
    reference = dense(correlation_matrix(batches, *moments))
    for pairs in (sparse, reference):
        assert 3 not in pairs.rows and 5 not in pairs.cols
    np.testing.assert_array_equal(sparse.cols, reference.cols)


def test_a_threshold_outside_the_range_of_correlations_is_refused():
    for threshold in (1.0, -1.5, float("nan")):
        with pytest.raises(MatchError, match="in \\[-1, 1\\)"):
            assign(graph_of(np.eye(2)), threshold=threshold)
