"""`matching.match`: two arrays matched, dense or sparse, numpy or torch."""

import numpy as np
import pandas
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


def test_tables_lists_and_all_sparse_formats_are_read():
    a = _codes(0, features=6, tokens=600)
    b = a[:, ::-1].copy()
    sparse = [getattr(sp, f"{name}_array")(a) for name in ("csr", "csc", "coo", "bsr", "dia", "lil", "dok")]
    tables = [pandas.DataFrame(a), pandas.DataFrame(a).astype(object), a.tolist(), (4 * a).astype(int), a > 0.5]
    half = torch.tensor(a).half()
    of_torch = [half.to_sparse_coo(), half.to_sparse_csc(), half.to_sparse_bsr((2, 2)), half.to_sparse(1)]
    for form in (*sparse, *tables, *of_torch):
        assert matching.match(form, b).pairs.cols.tolist() == [5, 4, 3, 2, 1, 0], type(form)


@pytest.mark.parametrize(
    "wrong, said",
    [
        ("features.npy", "numbers .*; got str of <U12"),
        ([["1", "2"]], "numbers .*; got list of <U1"),
        ([[1.0], [1.0, 2.0]], "numbers .*; got list"),
        (pandas.DataFrame({"one": [1.0], "two": ["word"]}), "numbers .*; got DataFrame"),
        (None, r"\[tokens, features\]"),
        ([1.0, 2.0], r"\[tokens, features\]; got the shape \(2,\)"),
        (torch.ones(3, 2, dtype=torch.complex64), "real numbers; got torch.complex64"),
    ],
)
def test_what_is_no_array_of_numbers_is_refused_in_one_line(wrong, said):
    with pytest.raises(matching.MatchError, match=f"features_a must .*{said}") as refusal:
        matching.match(wrong, _codes(0))
    assert "\n" not in str(refusal.value)


def test_a_match_shows_itself_in_short():
    a = _codes(0)
    found = matching.match(a, a[:, ::-1])
    null = f"{found.pairs.null_scores.mean():.3f}"
    shown = f"Match(pairs: 40, mean correlation: 1.000, best of 16 random partners: {null}, below the best matching at most: 0 %)"
    assert repr(found) == shown
    html = found._repr_html_()
    assert html.startswith("<table>") and all(f"<td>{one}</td>" in html for one in ("40", "1.000", null, "0 %"))


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
