"""95 % intervals over documents for a ratio of sums, such as nats per token. Coverage: docs/findings/intervals.md."""

from math import inf

from jaxtyping import Float
from scipy.special import stdtrit
from torch import Tensor


def effective_number(counts: Float[Tensor, " documents"]) -> float:
    """(Σ c)² / Σ c²: how many documents of equal length would vary as little as these. 0 without documents."""
    squares = float((counts**2).sum())
    return float(counts.sum()) ** 2 / squares if squares else 0.0


def ratio_interval(
    sums: Float[Tensor, " documents"],
    counts: Float[Tensor, " documents"],
    level: float = 0.95,
    effective: float | None = None,
) -> tuple[float, float]:
    """The t interval of Σ sums / Σ counts over documents, with a jackknife variance; infinite for a single document.

    The jackknife leaves out a document at a time. The degrees of freedom are the effective number of documents minus one, as a
    few long documents decide the variance. `effective` is that number where `sums` rest on fewer documents than `counts`.
    """
    documents = int((counts != 0).sum())
    freedom = (effective_number(counts) if effective is None else effective) - 1
    if documents < 2 or freedom <= 0:
        return -inf, inf
    total = counts.sum()
    ratio = float(sums.sum() / total)
    left_out = (sums - ratio * counts) / (total - counts)  # how much lower the ratio is without each document
    variance = float((left_out**2).sum()) * (documents - 1) / documents
    width = float(stdtrit(freedom, (1 + level) / 2)) * variance**0.5 if variance else 0.0
    return ratio - width, ratio + width


def departure(value: float, others: Float[Tensor, " documents"], level: float = 0.95) -> tuple[float, float, float]:
    """How far one document's `value` is above the mean of `others`, and the t interval of that.

    The document varies as each of the others does, and their mean is uncertain too, so this is a prediction interval: it holds 0
    for 95 % of the documents that are like the others. Infinite for fewer than two others.
    """
    count = len(others)
    above = value - float(others.mean())
    if count < 2:
        return above, -inf, inf
    width = float(stdtrit(count - 1, (1 + level) / 2)) * float(others.std()) * (1 + 1 / count) ** 0.5
    return above, above - width, above + width
