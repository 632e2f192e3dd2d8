"""`matching.match`: two arrays matched, dense or sparse, numpy or torch."""

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse as sp
import torch

import matching


def _codes(seed: int, features: int = 40, tokens: int = 3000) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.exponential(size=(tokens, features)) * (generator.random((tokens, features)) < 0.1)


def test_planted_pairs_are_found_whatever_the_form_of_the_arrays():
    a = _codes(0)
    order = np.random.default_rng(1).permutation(40)
    b = a[:, order] + 0.1 * _codes(2)
    found = matching.match(a, b)
    assert (order[found.pairs.cols] == found.pairs.rows).all() and len(found.pairs) == 40
    assert found.pairs.scores.min() > 0.95 > 0.2 > found.pairs.null_scores.max()
    forms = [
        (sp.csr_array(a), sp.coo_matrix(b)), (torch.tensor(a), torch.tensor(b)),
        (torch.tensor(a, requires_grad=True), torch.tensor(b).to_sparse_csr()),
    ]  # fmt: skip
    for form in forms:
        again = matching.match(*form)
        assert np.array_equal(again.pairs.cols, found.pairs.cols)
        assert np.allclose(again.pairs.scores, found.pairs.scores, atol=1e-12)
    low = matching.match(torch.tensor(a).bfloat16(), torch.tensor(b).bfloat16())
    assert np.array_equal(low.pairs.cols, found.pairs.cols)


def test_the_matching_is_that_of_the_exact_solver():
    a, b = _codes(3), _codes(3) @ np.abs(np.random.default_rng(4).normal(size=(40, 30)))
    found = matching.match(a, b)
    correlation = np.corrcoef(a.T, b.T)[:40, 40:]
    rows, cols = scipy.optimize.linear_sum_assignment(-np.maximum(correlation, 0))
    assert found.pairs.scores.sum() == pytest.approx(np.maximum(correlation, 0)[rows, cols].sum(), abs=1e-9)
    assert found.certificate.gap < 1e-9


def test_arrays_that_do_not_belong_together_are_refused():
    with pytest.raises(matching.MatchError, match="a row per token; got 3000 and 20"):
        matching.match(_codes(0), _codes(0, tokens=20))
    with pytest.raises(matching.MatchError, match=r"\[tokens, features\]"):
        matching.match(_codes(0)[0], _codes(0))
    with pytest.raises(matching.MatchError, match="NaN"):
        matching.match(_codes(0), np.full((3000, 40), np.nan))
