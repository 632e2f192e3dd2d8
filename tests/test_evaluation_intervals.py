import math

import pytest
import torch

from stitch.evaluation.documents import phrase, warning
from stitch.evaluation.intervals import effective_number, ratio_interval
from stitch.evaluation.scores import Scores

pytestmark = pytest.mark.numeric


def normal(trials: int, tokens: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Sums of documents whose means are standard normal."""
    return tokens * torch.randn(trials, len(tokens), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_equal_documents_give_the_t_interval_of_their_means():
    tokens = torch.full((10,), 50.0, dtype=torch.float64)
    means = normal(1, tokens)[0] / tokens
    low, high = ratio_interval(means * tokens, tokens)
    width = 2.262157 * float(means.std() / 10**0.5)  # the t distribution with 9 degrees of freedom
    assert (low, high) == pytest.approx((float(means.mean()) - width, float(means.mean()) + width), abs=1e-6)


@pytest.mark.parametrize("unequal", [0.0, 0.7, 1.4])
def test_nineteen_of_twenty_intervals_contain_the_truth_however_unequal_the_documents(unequal: float):
    tokens = (unequal * torch.randn(30, generator=torch.Generator().manual_seed(1))).exp().double()
    intervals = [ratio_interval(sums, tokens) for sums in normal(2000, tokens)]
    covered = sum(low <= 0 <= high for low, high in intervals) / 2000
    assert 0.935 < covered < 0.97


def test_documents_without_tokens_change_nothing():
    tokens = torch.tensor([3.0, 7.0, 5.0], dtype=torch.float64)
    sums = normal(1, tokens)[0]
    padded = torch.cat([sums, torch.zeros(4, dtype=torch.float64)]), torch.cat([tokens, torch.zeros(4).double()])
    assert ratio_interval(*padded) == pytest.approx(ratio_interval(sums, tokens))


def test_one_document_says_nothing_about_others():
    assert ratio_interval(torch.tensor([5.0, 0.0]), torch.tensor([2.0, 0.0])) == (-math.inf, math.inf)


def test_a_higher_level_is_wider():
    tokens = torch.ones(20, dtype=torch.float64)
    sums = normal(1, tokens)[0]
    low, high = ratio_interval(sums, tokens)
    lower, higher = ratio_interval(sums, tokens, level=0.999)
    assert lower < low < high < higher


def test_the_effective_number_falls_with_inequality():
    assert effective_number(torch.tensor([4.0, 4.0, 4.0, 0.0])) == pytest.approx(3)
    assert effective_number(torch.tensor([100.0, 1.0, 1.0])) == pytest.approx(1.04, abs=0.01)


def test_scores_count_their_documents_and_add_up():
    tokens = torch.tensor([4.0, 0.0, 4.0], dtype=torch.float64)
    some = Scores(tokens * 2, None, tokens, tokens)
    both = some + Scores(tokens * 4, None, tokens, tokens)
    assert (some.documents, some.effective_documents) == (2, 2.0)
    assert both.ce == 3.0 and both.kl is None and both.agreements is not None and both.tokens.sum() == 16


def test_a_report_warns_of_few_effective_documents():
    report = {"documents": {"number": 1200, "effective": 30.0}}
    assert phrase(report) == " of 1,200 documents (effective number 30)" and warning(report) == []
    (line,) = warning({"documents": {"number": 40, "effective": 12.4}})
    assert "12" in line and phrase({}) == "" and warning({}) == []
