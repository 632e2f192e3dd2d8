"""Against three oracles: the dense solver on all pairs, weak duality for any prices, and a bound computed by hand."""

from dataclasses import replace

import numpy as np
import pytest

import matching.certificate as certificate_module
from codes import planted, random_codes, stream_of
from graphs import graph_of
from matching.assignment import assign, assign_dense, assign_with_prices
from matching.certificate import Certificate, assign_certified, certify
from matching.compiled import best_gains
from matching.correlations import Correlations
from matching.errors import MatchError
from matching.graph import candidates
from matching.statistics import correlation_matrix, feature_moments


def hard(seed: int = 0, features: int = 60):
    """Weakly correlated features with many partners of similar quality: the best few candidates of each are not
    enough.
    """
    mixed = random_codes(900, features, seed) @ np.random.default_rng(seed).dirichlet(np.full(features, 0.05), features)
    batches = stream_of(random_codes(900, features, seed), mixed)
    return batches, feature_moments(batches)


def best(batches, moments, threshold: float) -> float:
    found = assign_dense(correlation_matrix(batches, *moments), generator=np.random.default_rng(0), threshold=threshold)
    return float((found.scores - threshold).sum())


@pytest.mark.parametrize("threshold", [0.0, 0.1])
@pytest.mark.parametrize("top", [1, 2, 4])
def test_pricing_reaches_the_optimum_over_all_pairs_from_an_incomplete_graph(top: int, threshold: float):
    batches, moments = hard()
    graph = candidates(Correlations.read(batches), generator=np.random.default_rng(0), top=top)
    before = float((assign(graph, threshold=threshold).scores - threshold).sum())
    pairs, certificate = assign_certified(Correlations.read(batches), graph, threshold=threshold, gap=1e-9, rounds=50)
    want = best(batches, moments, threshold)
    assert certificate.gain == pytest.approx(want, rel=1e-8)
    assert certificate.gap <= 1e-9
    assert certificate.gain == pytest.approx(float((pairs.scores - threshold).sum()))
    if top == 1:
        assert before < want * (1 - 1e-3)


@pytest.mark.parametrize("threshold", [0.0, 0.1])
@pytest.mark.parametrize("top", [1, 3, 8])
def test_rows_with_all_their_edges_are_not_searched_again(top: int, threshold: float, monkeypatch):
    """`complete=0` means that any pair may be missing, so every row is searched. The results are the same."""
    batches, _ = hard(top)
    correlations = Correlations.read(batches)
    graph = candidates(correlations, generator=np.random.default_rng(0), top=top)
    looked_at: list[int] = []
    monkeypatch.setattr(
        certificate_module, "best_gains", lambda *given: looked_at.append(len(given[5])) or best_gains(*given)
    )
    for _ in range(4):
        solved = assign_with_prices(graph, threshold)
        short, more = certify(correlations, graph, *solved, threshold=threshold)
        long, same = certify(correlations, replace(graph, complete=0), *solved, threshold=threshold)
        assert short.gain == long.gain and short.bound == pytest.approx(long.bound, abs=1e-9)
        assert np.array_equal(more.rows, same.rows) and np.array_equal(more.cols, same.cols)
        graph = more
    assert all(few < all_rows == 60 for few, all_rows in zip(looked_at[::2], looked_at[1::2], strict=True))


@pytest.mark.parametrize("seed", range(4))
def test_the_bound_holds_and_is_tight_on_a_complete_graph(seed: int):
    correlation = np.random.default_rng(seed).uniform(-1, 1, (12, 15))
    graph = graph_of(correlation)
    pairs, price = assign_with_prices(graph, 0.2)
    bound = price.sum() + (correlation - 0.2 - price).max(1).clip(min=0).sum()
    assert bound == pytest.approx((pairs.scores - 0.2).sum(), abs=1e-10)
    assert (price >= 0).all()
    unmatched = np.setdiff1d(np.arange(15), pairs.cols)
    assert (price[unmatched] < 1e-10).all()  # unmatched columns have price 0


def test_the_bound_holds_for_a_matching_that_is_not_optimal():
    batches, moments = hard(3)
    graph = candidates(Correlations.read(batches), generator=np.random.default_rng(0), top=1)
    certificate, larger = certify(Correlations.read(batches), graph, *assign_with_prices(graph))
    want = best(batches, moments, 0.0)
    assert certificate.gain < want <= certificate.bound + 1e-9
    assert certificate.gap >= 1 - certificate.gain / want
    assert len(larger.rows) > len(graph.rows)
    correlation = correlation_matrix(batches, *moments)
    np.testing.assert_allclose(larger.correlation, correlation[larger.rows, larger.cols], atol=1e-12)


def test_the_missing_pairs_of_highest_gain_are_added_first():
    batches, moments = hard(3)
    graph = candidates(Correlations.read(batches), generator=np.random.default_rng(0), top=1)
    pairs, prices = assign_with_prices(graph)
    _, larger = certify(Correlations.read(batches), graph, pairs, prices, more=1)
    known = set(zip(graph.rows, graph.cols, strict=True))
    left = np.nan_to_num(correlation_matrix(batches, *moments), nan=-1) - prices
    added = [edge for edge in zip(larger.rows, larger.cols, strict=True) if edge not in known]
    assert added
    for row, col in added:
        assert col == left[row].argmax()


def test_prices_computed_by_hand():
    """Two rows prefer the same column; the price for the winner follows from the loser's second choice."""
    correlation = np.array([[0.9, 0.1], [0.8, 0.5]])
    graph = graph_of(correlation)
    pairs, prices = assign_with_prices(graph)
    assert list(pairs.cols) == [0, 1]
    assert prices == pytest.approx([0.3, 0.0])  # row 1 is indifferent between 0.5 and 0.8 at a price of 0.3


def test_a_complete_graph_is_certified_at_once():
    a, b, _ = planted(1200, 40, 0)
    correlations = Correlations.read(stream_of(a, b))
    graph = candidates(correlations, generator=np.random.default_rng(0), top=40)
    certificate, larger = certify(correlations, graph, *assign_with_prices(graph))
    assert larger is graph
    assert certificate.gap < 1e-12


def test_a_threshold_below_zero_cannot_be_certified():
    batches, _ = hard(1)
    correlations = Correlations.read(batches)
    graph = candidates(correlations, generator=np.random.default_rng(0), top=2)
    with pytest.raises(MatchError, match=r"threshold must be at least 0 .*; got -0\.1"):
        assign_certified(correlations, graph, threshold=-0.1)


def test_without_pairs_above_the_threshold_the_gain_is_zero():
    batches, _ = hard(1)
    graph = candidates(Correlations.read(batches), generator=np.random.default_rng(0), top=2)
    pairs, certificate = assign_certified(Correlations.read(batches), graph, threshold=0.999)
    assert len(pairs) == 0
    assert certificate == Certificate(0.0, 0.0)
    assert certificate.gap == 0


def test_prices_are_finite_when_all_pairs_tie():
    """Every matching is optimal, and raising prices must end."""
    graph = graph_of(np.full((30, 20), 0.5))
    pairs, price = assign_with_prices(graph)
    assert price == pytest.approx(np.full(20, 0.5))  # ten rows stay unmatched, so the price equals the whole gain
    assert price.sum() == pytest.approx(pairs.scores.sum())
