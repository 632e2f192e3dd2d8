"""Against POT on dense costs (its network simplex, its unbalanced Sinkhorn), marginals, and planted partners."""

import sys

import numpy as np
import pytest

from codes import planted, random_codes, stream_of
from graphs import graph_of
from matching.correlations import Correlations
from matching.errors import MatchError
from matching.graph import candidates
from matching.statistics import correlation_matrix, feature_moments
from matching.transport import balanced, unbalanced
from matching.types import Plan

pytestmark = pytest.mark.numeric

ot = pytest.importorskip("ot")


def matrix(plan: Plan, shape: tuple[int, int]) -> np.ndarray:
    dense = np.zeros(shape)
    np.add.at(dense, (plan.rows, plan.cols), plan.mass)
    return dense


@pytest.mark.parametrize("shape", [(1, 1), (12, 12), (9, 15), (15, 9)])
@pytest.mark.parametrize("missing", [0.0, 0.8])
def test_balanced_equals_the_dense_optimum_with_missing_pairs_uncorrelated(shape: tuple[int, int], missing: float):
    generator = np.random.default_rng(shape[0])
    correlation = generator.uniform(-0.5, 1.0, shape)
    correlation[generator.random(shape) < missing] = np.nan
    weights_a, weights_b = generator.random(shape[0]), generator.random(shape[1])
    if shape[0] > 1:
        weights_a[2] = 0.0
    weights_a, weights_b = weights_a / weights_a.sum(), weights_b / weights_b.sum()
    plan = matrix(balanced(graph_of(correlation), weights_a, weights_b), shape)
    cost = 1 - np.nan_to_num(correlation, nan=0.0).clip(min=0)
    np.testing.assert_allclose(plan.sum(1), weights_a, atol=1e-12)
    np.testing.assert_allclose(plan.sum(0), weights_b, atol=1e-12)
    assert (plan >= 0).all()
    assert (plan * cost).sum() == pytest.approx(ot.emd2(weights_a, weights_b, cost), abs=1e-12)


def test_balanced_with_equal_weights_is_the_planted_permutation():
    a, b, partner = planted(3000, 60, 0)
    batches = stream_of(a, b)
    graph = candidates(Correlations.read(batches), generator=np.random.default_rng(0), top=8)
    plan = balanced(graph, np.ones(60), np.ones(60))
    np.testing.assert_array_equal(plan.cols, partner)
    np.testing.assert_allclose(plan.mass, 1 / 60, rtol=1e-9)


def test_balanced_splits_a_feature_over_its_two_halves():
    # feature 0 of A is features 0 and 1 of B in turn; their frequencies determine how much mass goes to each
    b = random_codes(4000, 6, 1)
    b[:, 1] *= b[:, 0] == 0
    a = np.column_stack([b[:, 0] + b[:, 1], b[:, 2:]])
    batches = stream_of(a, b)
    moments = feature_moments(batches)
    graph = candidates(Correlations.read(batches), generator=np.random.default_rng(0))
    plan = matrix(balanced(graph, moments[0].frequency, moments[1].frequency), (5, 6))
    np.testing.assert_allclose(plan[0, :2], moments[1].frequency[:2] / moments[1].frequency.sum(), atol=1e-6)
    assert plan[0, 2:].sum() < 1e-6


@pytest.mark.parametrize(("epsilon", "rho"), [(0.05, 0.3), (0.3, 0.05), (0.02, 2.0)])
def test_unbalanced_equals_dense_sinkhorn_on_a_complete_graph(epsilon: float, rho: float):
    generator = np.random.default_rng(2)
    correlation = generator.uniform(-0.3, 1.0, (8, 11))
    weights_a, weights_b = generator.random(8), generator.random(11)
    weights_a, weights_b = weights_a / weights_a.sum(), weights_b / weights_b.sum()
    plan = unbalanced(graph_of(correlation), weights_a, weights_b, regularisation=epsilon, marginal_penalty=rho)
    want = ot.unbalanced.sinkhorn_unbalanced(
        weights_a, weights_b, 1 - correlation, epsilon, rho, reg_type="kl", numItermax=100_000, stopThr=1e-14
    )
    np.testing.assert_allclose(matrix(plan, (8, 11)), want, atol=1e-9)


def test_unbalanced_drops_planted_unmatched_mass_and_balanced_does_not():
    a, b, partner = planted(4000, 40, 3, noise=0.1)
    strangers = np.arange(10)
    b[:, partner[strangers]] = random_codes(4000, 10, 99)
    batches = stream_of(a, b)
    graph = candidates(Correlations.read(batches), generator=np.random.default_rng(0), top=8)
    uniform = np.ones(40)
    kept = matrix(unbalanced(graph, uniform, uniform, regularisation=0.02, marginal_penalty=0.1), (40, 40)).sum(1)
    assert kept[strangers].max() < 0.1 * kept[10:].min()
    forced = matrix(balanced(graph, uniform, uniform), (40, 40)).sum(1)
    np.testing.assert_allclose(forced, 1 / 40, atol=1e-12)


def test_unbalanced_touches_no_pair_outside_the_graph():
    correlation = np.array([[0.9, np.nan, np.nan], [np.nan, np.nan, 0.7], [np.nan, np.nan, np.nan]])
    plan = unbalanced(graph_of(correlation), np.ones(3), np.ones(3))
    assert (plan.rows.tolist(), plan.cols.tolist()) == ([0, 1], [0, 2])


def test_a_small_regularisation_does_not_underflow():
    correlation = np.random.default_rng(4).uniform(-0.9, 0.3, (6, 6))  # costs up to 1.9 / 0.001: exp(−1900) is zero
    plan = unbalanced(graph_of(correlation), np.ones(6), np.ones(6), regularisation=1e-3, marginal_penalty=0.2)
    assert np.isfinite(plan.mass).all() and plan.mass.sum() > 1e-3


def test_transport_is_the_same_twice():
    correlation = correlation_matrix(batches := stream_of(*planted(900, 15, 5)[:2]), *feature_moments(batches))
    for solve in (balanced, unbalanced):
        first, second = (solve(graph_of(correlation), np.ones(15), np.ones(15)) for _ in range(2))
        assert first.mass.tobytes() == second.mass.tobytes()


def test_unusable_weights_and_parameters_are_refused():
    graph = graph_of(np.eye(3))
    for weights in (np.zeros(3), np.array([1.0, -1.0, 3.0]), np.array([1.0, np.nan, 1.0])):
        for solve in (balanced, unbalanced):
            with pytest.raises(MatchError, match=r"weights_b must be .* got others"):
                solve(graph, np.ones(3), weights)
    with pytest.raises(MatchError, match="must be positive for unbalanced"):
        unbalanced(graph, np.ones(3), np.ones(3), regularisation=0.0)
    with pytest.raises(MatchError, match="converge within 2 iterations"):
        unbalanced(graph_of(0.5 + 0.4 * np.eye(3)), np.ones(3), np.array([1.0, 2.0, 3.0]), iterations=2)


def test_without_pot_the_error_names_the_package_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(MatchError, match=r"pip install '\.\[ot\]'"):
        balanced(graph_of(np.eye(3)), np.ones(3), np.ones(3))
    assert len(unbalanced(graph_of(np.eye(3)), np.ones(3), np.ones(3)))  # needs none
