"""What steering vectors do to the next token: the mean change of every token's log probability, and how sure that is."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from scipy.special import stdtrit
from torch import Tensor

AT_ONCE = 2**25  # bytes of log probabilities: those of a whole window take half a gigabyte with a large vocabulary
GROUPS = 20  # of documents, left out one at a time; the sums of a row take this many vocabularies


class Effects:
    """Log probabilities of every token of the vocabulary, summed by row and group of documents.

    Groups have about the same number of tokens. `tokens` [documents] are those of each document; `group` is that of each
    document, where it is another than `groups` of these tokens.
    """

    def __init__(
        self, tokens: Float[Tensor, " documents"], vocabulary: int, group: Int[Tensor, " documents"] | None = None
    ):
        self.group = groups(tokens) if group is None else group
        self.predictions = torch.zeros(int(self.group.max()) + 1, dtype=torch.float64)
        self.predictions.index_add_(0, self.group, tokens.double())
        self.vocabulary = vocabulary
        self.sums: dict[str, Float[Tensor, "groups vocabulary"]] = {}

    def add(self, row: str, logits: Float[Tensor, "tokens logits"], documents: Int[Tensor, " tokens"]) -> None:
        """Adds the log probabilities at some tokens, which are of these documents."""
        if row not in self.sums:
            self.sums[row] = torch.zeros(len(self.predictions), self.vocabulary)
        summed = logits.new_zeros(len(self.predictions), self.vocabulary, dtype=torch.float32)
        group = self.group[documents].to(logits.device)
        some = max(1, AT_ONCE // (4 * self.vocabulary))
        for part, of in zip(logits.split(some), group.split(some), strict=True):
            summed.index_add_(0, of, part[:, : self.vocabulary].float().log_softmax(-1))
        self.sums[row] += summed.cpu()

    def change(self, row: str, before: str) -> Float[Tensor, "groups_and_all vocabulary"]:
        """The mean change per token from one row to another: over all groups, then without each of them."""
        sums = (self.sums[row] - self.sums[before]).double()
        total, count = sums.sum(0), self.predictions.sum()
        return torch.cat([total[None] / count, (total - sums) / (count - self.predictions)[:, None]])


def groups(tokens: Float[Tensor, " documents"]) -> Int[Tensor, " documents"]:
    """A group for every document: at most GROUPS of them, the longest documents first, each to the group that has least."""
    filled = torch.zeros(max(1, min(GROUPS, int((tokens > 0).sum()))), dtype=torch.float64)
    group = torch.zeros(len(tokens), dtype=torch.long)
    for document in tokens.argsort(descending=True, stable=True).tolist():
        group[document] = filled.argmin()
        filled[group[document]] += tokens[document]
    return group


def with_interval(
    measure: Callable[[Tensor, Tensor], float],
    here: Sequence[Float[Tensor, "groups_and_all vocabulary"]],
    there: Sequence[Float[Tensor, "groups_and_all vocabulary"]],
    level: float = 0.95,
) -> tuple[float, float, float]:
    """The mean of `measure` over pairs of changes, and the ends of its interval.

    That is the t interval of the delete-a-group jackknife (Kott 2001); infinite for a single group.
    """
    values = [
        sum(measure(one[left_out], other[left_out]) for one, other in zip(here, there, strict=True)) / len(here)
        for left_out in range(len(here[0]))
    ]
    whole, without = values[0], torch.tensor(values[1:], dtype=torch.float64)
    count = len(without)
    if count < 2:
        return whole, -torch.inf, torch.inf
    error = float(((without - whole).square().sum() * (count - 1) / count).sqrt())
    width = float(stdtrit(count - 1, (1 + level) / 2)) * error
    return whole, whole - width, whole + width


def correlation(one: Float[Tensor, " n"], other: Float[Tensor, " n"]) -> float:
    return float(torch.corrcoef(torch.stack([one, other]))[0, 1].nan_to_num())


def size(one: Float[Tensor, " n"], other: Float[Tensor, " n"]) -> float:
    """The ratio of standard deviations."""
    return float(one.std() / other.std().clamp_min(1e-12))
