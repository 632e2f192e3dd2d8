"""Effects of steering vectors and their intervals over documents."""

import pytest
import torch
from scipy import stats

from stitch.transfers.effects import GROUPS, Effects, correlation, groups, with_interval


def test_groups_hold_about_equally_many_tokens():
    tokens = torch.rand(110, generator=torch.Generator().manual_seed(0)).double() * 300
    group = groups(tokens)
    filled = torch.zeros(GROUPS, dtype=torch.float64).index_add_(0, group, tokens)
    assert filled.min() > 0.9 * filled.mean() and filled.max() < 1.1 * filled.mean()
    assert len(groups(torch.ones(3)).unique()) == 3
    assert groups(torch.tensor([5.0, 0.0])).tolist() == [0, 0]  # a document without tokens has no group of its own


def test_changes_are_means_over_tokens_with_and_without_each_group():
    documents = torch.arange(6).repeat_interleave(4)
    found = Effects(torch.bincount(documents).double(), vocabulary=5)
    before, after = torch.randn(2, 24, 7, generator=torch.Generator().manual_seed(1))
    for rows in (slice(0, 10), slice(10, 24)):
        found.add("b", before[rows], documents[rows])
        found.add("steered", after[rows], documents[rows])
    change = after[:, :5].log_softmax(-1) - before[:, :5].log_softmax(-1)
    got = found.change("steered", "b")
    torch.testing.assert_close(got[0].float(), change.mean(0))
    for document in range(6):
        group = int(found.group[document])
        torch.testing.assert_close(got[1 + group].float(), change[documents != document].mean(0))


def test_interval_of_a_mean_is_the_t_interval():
    values = torch.randn(20, generator=torch.Generator().manual_seed(2)).double()
    tokens = torch.ones(20, dtype=torch.float64)
    found = Effects(tokens, vocabulary=1)
    found.sums = {"b": torch.zeros(20, 1), "steered": values[found.group.argsort()][:, None].float()}
    change = found.change("steered", "b")
    mean, low, high = with_interval(lambda one, _: float(one[0]), [change], [change])
    expected = stats.t.interval(0.95, 19, loc=values.mean(), scale=stats.sem(values.numpy()))
    assert (mean, low, high) == pytest.approx((float(values.mean()), *expected), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.3, 2.0])
def test_interval_of_a_correlation_holds_its_value(noise):
    """Effects with a common part and noise by document: of 60 draws of documents about 57 contain the value for all documents."""
    generator = torch.Generator().manual_seed(3)
    effect, other = torch.randn(2, 200, generator=generator).double()
    other = effect + 0.5 * other
    contained = 0
    for _ in range(60):
        sums = effect + noise * torch.randn(20, 200, generator=generator).double()
        more = torch.cat([sums.mean(0)[None], (sums.sum(0) - sums) / 19])
        target = other[None].expand(21, -1)
        _, low, high = with_interval(correlation, [more], [target])
        # The noise lowers the correlation; with many documents its share would be that of 20.
        many = effect + noise * torch.randn(1000, 20, 200, generator=generator).double().mean(1)
        expected = torch.stack([torch.corrcoef(torch.stack([one, other]))[0, 1] for one in many[:50]]).mean()
        contained += low <= expected <= high
    assert contained >= 51


def test_one_group_has_no_interval():
    change = torch.randn(2, 4).double()
    assert with_interval(correlation, [change], [change])[1:] == (-torch.inf, torch.inf)
