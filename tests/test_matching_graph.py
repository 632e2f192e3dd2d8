"""Against the sorted dense correlation matrix."""

import numpy as np
import pytest

from codes import planted, random_codes, stream_of
from matching.certificate import assign_certified
from matching.correlations import Correlations
from matching.errors import MatchError
from matching.graph import candidates
from matching.statistics import correlation_matrix, feature_moments
from matching.stream import SEGMENT
from matching.types import Candidates


def best_edges(correlation: np.ndarray, top: int) -> set[tuple[int, int]]:
    """The top positive entries of every row and column, ties to the lower index: the slow reference."""
    value = np.where(np.isnan(correlation), -np.inf, correlation)
    edges = set()
    for row, values in enumerate(value):
        edges |= {(row, int(col)) for col in np.argsort(-values, kind="stable")[:top]}
    for col, values in enumerate(value.T):
        edges |= {(int(row), col) for row in np.argsort(-values, kind="stable")[:top]}
    return {edge for edge in edges if value[edge] > 0}


def fields(graph: Candidates) -> list[bytes]:
    arrays = (graph.rows, graph.cols, graph.correlation, graph.co_moment)
    return [array.tobytes() for array in (*arrays, graph.alternatives.cols, graph.alternatives.correlation)]


@pytest.mark.parametrize("shape", [(30, 20), (20, 30)])
def test_candidates_equal_the_dense_reference(shape: tuple[int, int]):
    a, b = random_codes(1500, shape[0], 0), random_codes(1500, shape[1], 1)
    b[:, :10] += a[:, 3:13]
    a[:, 5] = 0
    a[:, 6] += 2.0
    a[:, 8] = a[:, 7]  # ties
    b[:, 17] = b[:, 16]
    batches = stream_of(a, b)
    moments = feature_moments(batches)
    correlation = correlation_matrix(batches, *moments)
    found = candidates(Correlations.read(batches), generator=np.random.default_rng(3), top=4)
    assert set(zip(found.rows.tolist(), found.cols.tolist(), strict=True)) == best_edges(correlation, 4)
    np.testing.assert_allclose(found.correlation, correlation[found.rows, found.cols], rtol=0, atol=1e-13)
    want = (a[:, found.rows] * b[:, found.cols]).mean(0)
    np.testing.assert_allclose(found.co_moment, want, atol=1e-12)


def test_rows_with_few_and_with_many_entries_are_summed_alike():
    """Of 400 features of B, 4 are active on a token: the first rows have at most 64 entries, the others 1,000 and
    more.
    """
    a, b = random_codes(1500, 24, 14, share=0.3), random_codes(1500, 400, 15, share=0.01)
    for row in range(12):
        a[np.flatnonzero(a[:, row])[16:], row] = 0
    b[:, :24] += 0.5 * a
    a[:, 12], b[:, 200] = -a[:, 12], np.where(a[:, 12] == 0, b[:, 200], 0)  # never active together, but correlated
    batches = stream_of(a, b)
    correlation = correlation_matrix(batches, *feature_moments(batches))
    assert correlation[12, 200] > 0
    correlation[a.T @ b == 0] = 0
    found = candidates(Correlations.read(batches), generator=np.random.default_rng(3), top=4)
    assert set(zip(found.rows.tolist(), found.cols.tolist(), strict=True)) == best_edges(correlation, 4)
    np.testing.assert_allclose(found.correlation, correlation[found.rows, found.cols], rtol=0, atol=1e-13)


def test_codes_beyond_the_budget_are_thinned_out_evenly():
    a, b, partner = planted(6 * SEGMENT, 20, 4)
    a[SEGMENT : 2 * SEGMENT] = 0  # a segment that is skipped when every second one is read
    whole = Correlations.read(stream_of(a, b))
    half = Correlations.read(stream_of(a, b), budget_bytes=5 * int((a > 0).sum() + (b > 0).sum()))
    assert (whole.moments_a.count, half.moments_a.count) == (6 * SEGMENT, 3 * SEGMENT)
    kept = np.concatenate([a[start : start + SEGMENT] for start in (0, 2 * SEGMENT, 4 * SEGMENT)])
    np.testing.assert_allclose(half.moments_a.mean, kept.mean(0))
    graph = candidates(half, generator=np.random.default_rng(0), top=1)
    assert all(partner[row] in graph.cols[graph.rows == row] for row in range(20))


def test_codes_in_single_precision_are_kept_as_they_are_and_summed_in_double():
    a, b = (random_codes(1500, 6, seed).astype(np.float32) for seed in (12, 13))
    correlations = Correlations.read(stream_of(a, b))
    assert correlations.by_feature.values.dtype == correlations.by_token.values.dtype == np.float32
    rows, cols = np.divmod(np.arange(36), 6)
    want = np.corrcoef(a.T.astype(float), b.T.astype(float))[:6, 6:].flatten()
    np.testing.assert_allclose(correlations.of(rows, cols), want, atol=1e-13)


def test_candidates_do_not_depend_on_how_the_stream_is_cut():
    a, b, _ = planted(2100, 20, 4)
    graphs = []
    for batch in (100, 999, 2100):
        batches = stream_of(a, b, batch)
        graphs.append(candidates(Correlations.read(batches), generator=np.random.default_rng(0), top=3))
    assert fields(graphs[0]) == fields(graphs[1]) == fields(graphs[2])


def test_a_graph_with_all_partners_has_every_positive_correlation():
    a, b, _ = planted(800, 12, 5)
    batches = stream_of(a, b)
    graph = candidates(Correlations.read(batches), generator=np.random.default_rng(0), top=12)
    correlation = correlation_matrix(batches, *feature_moments(batches))
    assert len(graph.rows) == (correlation > 0).sum()


def test_dead_and_rare_features_have_no_edge_and_are_never_an_alternative():
    a, b, _ = planted(900, 10, 6)
    a[:, 2] = 0
    b[:, 3] = 4.0
    b[:, 7] = 0
    b[:9, 7] = 1.0  # nine firings, one below the minimum
    batches = stream_of(a, b)
    graph = candidates(Correlations.read(batches), generator=np.random.default_rng(0))
    assert not (graph.rows == 2).any()
    assert not np.isin(graph.cols, [3, 7]).any()
    assert not np.isin(graph.alternatives.cols, [3, 7]).any()
    assert set(graph.rows) == set(range(10)) - {2} and set(graph.cols) == set(range(10)) - {3, 7}


def test_alternatives_carry_their_exact_correlation():
    a, b, _ = planted(900, 15, 7)
    batches = stream_of(a, b)
    moments = feature_moments(batches)
    drawn = candidates(Correlations.read(batches), generator=np.random.default_rng(0), top=5).alternatives
    correlation = correlation_matrix(batches, *moments)
    np.testing.assert_allclose(drawn.correlation, np.take_along_axis(correlation, drawn.cols, axis=1), atol=1e-13)


def test_the_best_alternative_excludes_the_partner():
    a, b, partner = planted(900, 8, 8)
    batches = stream_of(a, b)
    moments = feature_moments(batches)
    drawn = candidates(Correlations.read(batches), generator=np.random.default_rng(0), top=8).alternatives  # all eight
    correlation = correlation_matrix(batches, *moments)
    rows = np.arange(8)
    correlation[rows, partner] = -np.inf
    np.testing.assert_allclose(drawn.best(rows, partner), correlation.max(axis=1), atol=1e-13)


@pytest.mark.parametrize("always_on", [False, True])
def test_correlations_and_co_moments_of_any_pairs_equal_the_dense_ones(always_on: bool):
    a, b = random_codes(1500, 6, 12), random_codes(1500, 5, 13)
    b[:, 1] = np.where(a[:, 3] > 0, 0.0, b[:, 1])  # never active together
    if always_on:  # centred by the function
        a[:, 5] += 4.0
        b[:, 4] += 3.0
    rows, cols = np.array([5, 3, 0, 3, 3]), np.array([4, 1, 4, 2, 1])  # in no order, one of them twice
    correlations = Correlations.read(stream_of(a, b))
    found = correlations.of(rows, cols)
    want = np.corrcoef(a.T, b.T)[rows, 6 + cols]
    np.testing.assert_allclose(found, want, atol=1e-12)
    np.testing.assert_allclose(
        correlations.co_moments(rows, cols, found), (a[:, rows] * b[:, cols]).mean(0), rtol=1e-10, atol=1e-12
    )


def test_unusable_codes_are_refused():
    a, b = random_codes(400, 6, 9), random_codes(400, 6, 10)
    batches = stream_of(a, b)
    with pytest.raises(MatchError, match=r"must hold 1,024 tokens, which take \d,\d+; got 47"):
        Correlations.read(batches, budget_bytes=47)
    dead = stream_of(a, np.zeros_like(b))
    with pytest.raises(MatchError, match="got none among the 6 of B"):
        Correlations.read(dead)


def test_threads_share_the_rows_and_change_nothing():
    a, b, _ = planted(1500, 30, 4)
    a[:, 7], b[:, 5] = a[:, 6], b[:, 4]  # ties
    rows, cols = np.divmod(np.random.default_rng(1).permutation(30 * 30), 30)
    found = []
    for threads in (1, 2, 5):
        correlations = Correlations.read(stream_of(a, b), threads=threads)
        graph = candidates(correlations, generator=np.random.default_rng(0), top=2)
        pairs, certificate = assign_certified(correlations, graph, gap=0.0)
        found.append((fields(graph), pairs.cols.tolist(), certificate, correlations.of(rows, cols).tolist()))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    "other",
    [
        lambda a, b: (a[:-1], b[:-1]),
        lambda a, b: (np.concatenate([a, a]), np.concatenate([b, b])),
        lambda a, b: (np.roll(a, 1, axis=1), b),
        lambda a, b: (a, np.zeros_like(b)),
    ],
    ids=["shorter", "longer", "other features of A", "fewer features of B"],
)
def test_a_stream_that_changes_is_refused(other):
    a, b = random_codes(1500, 6, 9), random_codes(1500, 6, 10)
    passes = iter([(a, b), other(a, b)])
    with pytest.raises(MatchError, match=r"the same stream; got a different one after [\d,]+ of 1,500 tokens"):
        Correlations.read(lambda: stream_of(*next(passes))())


def test_a_stream_that_changes_after_it_was_thinned_out_is_refused():
    a, b = random_codes(1500, 6, 9), random_codes(1500, 6, 10)
    # the codes read back, the moments of those kept, and the codes
    passes = iter([(a, b), (a, b), (np.roll(a, 1, axis=1), b)])
    budget = 5 * int((a > 0).sum() + (b > 0).sum())
    with pytest.raises(MatchError, match=r"the same stream; got a different one after [\d,]+ of 1,024 tokens"):
        Correlations.read(lambda: stream_of(*next(passes))(), budget_bytes=budget)
    assert next(passes, None) is None
