"""Against numpy on dense codes, and exact arithmetic with huge means."""

import numpy as np
import pytest
import scipy.sparse as sp

from codes import random_codes, stream_of
from matching.errors import MatchError
from matching.statistics import FeatureMoments, correlation_matrix, feature_moments


def test_moments_equal_those_of_the_dense_codes():
    a, b = random_codes(2500, 7, 0), random_codes(2500, 5, 1)
    for moments, dense in zip(feature_moments(stream_of(a, b)), (a, b), strict=True):
        assert moments.count == 2500
        np.testing.assert_allclose(moments.mean, dense.mean(0), rtol=1e-13)
        np.testing.assert_allclose(moments.variance, dense.var(0), rtol=1e-12)
        np.testing.assert_allclose(moments.second, (dense**2).mean(0), rtol=1e-12)
        np.testing.assert_array_equal(moments.frequency, (dense != 0).mean(0))


@pytest.mark.parametrize("always_on", [False, True])
def test_correlations_equal_those_of_numpy(always_on: bool):
    a, b = random_codes(3000, 9, 2), random_codes(3000, 6, 3)
    b[:, :4] += a[:, 2:6]
    if always_on:
        a[:, 3] += 1.0
        b[:, 1] += 5.0
    batches = stream_of(a, b)
    want = np.corrcoef(a.T, b.T)[:9, 9:]
    np.testing.assert_allclose(correlation_matrix(batches, *feature_moments(batches)), want, atol=1e-13)


def test_results_do_not_depend_on_how_the_stream_is_cut():
    a, b = random_codes(2100, 8, 4), random_codes(2100, 8, 5)
    a[:, 0] += 1.0
    cuts = [stream_of(a, b, batch) for batch in (37, 1024, 1500, 2100)]
    moments = [feature_moments(batches) for batches in cuts]
    for batches, pair in zip(cuts, moments, strict=True):
        for found, first in zip(pair, moments[0], strict=True):
            assert found.mean.tobytes() == first.mean.tobytes()
            assert found.variance.tobytes() == first.variance.tobytes()
        found = correlation_matrix(batches, *pair)
        assert found.tobytes() == correlation_matrix(cuts[0], *moments[0]).tobytes()


@pytest.mark.parametrize("mean", [1e4, 1e7])
def test_a_huge_mean_does_not_cancel_the_variance(mean: float):
    generator = np.random.default_rng(6)
    # multiples of 1/1024, so that adding the mean is exact and the reference has the same deviations
    a = np.round(generator.standard_normal((5000, 3)) * 1024) / 1024
    b = np.round((a + generator.standard_normal((5000, 3))) * 1024) / 1024
    batches = stream_of(a + mean, b - mean)
    moments = feature_moments(batches)
    np.testing.assert_allclose(moments[0].variance, a.var(0), rtol=1e-9)
    want = np.corrcoef(a.T, b.T)[:3, 3:]
    np.testing.assert_allclose(correlation_matrix(batches, *moments), want, atol=1e-9)


def test_float32_codes_are_summed_in_float64():
    generator = np.random.default_rng(7)
    a = (generator.random((4000, 4)) + 300).astype(np.float32)
    b = (a[:, ::-1] + generator.random((4000, 4))).astype(np.float32)
    batches = stream_of(a, b)
    want = np.corrcoef(a.astype(np.float64).T, b.astype(np.float64).T)[:4, 4:]
    np.testing.assert_allclose(correlation_matrix(batches, *feature_moments(batches)), want, atol=1e-11)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e8 + 0.1])
def test_constant_features_have_no_correlation(value: float):
    a, b = random_codes(3000, 4, 8), random_codes(3000, 4, 9)
    a[:, 1] = value
    b[:, 2] = value
    batches = stream_of(a, b)
    correlation = correlation_matrix(batches, *feature_moments(batches))
    assert np.isnan(correlation[1]).all() and np.isnan(correlation[:, 2]).all()
    assert np.isfinite(np.delete(np.delete(correlation, 1, 0), 2, 1)).all()


def test_features_that_fire_too_rarely_have_no_correlation():
    a, b = random_codes(500, 3, 10), random_codes(500, 3, 11)
    a[:, 0] = b[:, 0] = 0
    a[7, 0] = b[7, 0] = 1.0  # one firing each, together: a perfect correlation without meaning
    batches = stream_of(a, b)
    moments = feature_moments(batches)
    assert np.isnan(correlation_matrix(batches, *moments)[0, 0])
    assert correlation_matrix(batches, *moments, minimum_firings=1)[0, 0] == pytest.approx(1.0)


def test_stored_zeros_and_repeated_entries_are_summed():
    # row 0 stores (col 0: 1 + 2, col 1: 0), row 1 stores (col 1: 4)
    messy = sp.csr_array((np.array([1.0, 2.0, 0.0, 4.0]), np.array([0, 0, 1, 1]), np.array([0, 3, 4])), shape=(2, 2))
    before = messy.data.copy()
    moments, _ = feature_moments(lambda: [(messy, messy)])
    np.testing.assert_array_equal(moments.mean, [1.5, 2.0])
    np.testing.assert_array_equal(moments.firings, [1, 1])
    np.testing.assert_array_equal(messy.data, before)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_codes_that_are_not_finite_are_refused(value: float, side: int):
    codes = [random_codes(400, 3, 14), random_codes(400, 3, 15)]
    codes[side][350, 1] = value
    with pytest.raises(MatchError, match=f"codes of {'AB'[side]}, batch 1"):
        feature_moments(stream_of(codes[0], codes[1]))


def test_an_inconsistent_stream_is_refused():
    a, b = random_codes(400, 3, 16), random_codes(400, 3, 17)
    with pytest.raises(MatchError, match="empty stream"):
        feature_moments(lambda: [])
    with pytest.raises(MatchError, match="empty stream"):
        feature_moments(lambda: [(sp.csr_array(a[:0]), sp.csr_array(b[:0]))])
    with pytest.raises(MatchError, match="same tokens; got 400 and 399"):
        feature_moments(lambda: [(sp.csr_array(a), sp.csr_array(b[:-1]))])
    with pytest.raises(MatchError, match="must not change"):
        feature_moments(lambda: [(sp.csr_array(a), sp.csr_array(b)), (sp.csr_array(a), sp.csr_array(b[:, :2]))])


def test_a_stream_that_does_not_restart_is_refused():
    a, b = random_codes(400, 3, 18), random_codes(400, 3, 19)
    moments = feature_moments(stream_of(a, b))
    with pytest.raises(MatchError, match="400 and 400; got 399"):
        correlation_matrix(stream_of(a[1:], b[1:]), *moments)
    with pytest.raises(MatchError, match="features of the moments"):
        correlation_matrix(stream_of(a[:, 1:], b), *moments)


def test_a_dense_matrix_beyond_the_budget_is_refused():
    empty = FeatureMoments(1, np.zeros(1000), np.zeros(1000), np.zeros(1000, np.int64))
    with pytest.raises(MatchError, match="at least 8,000,000"):
        correlation_matrix(lambda: [], empty, empty, budget_bytes=7_999_999)
