"""Made rows of a head that are said far more often than the text has their tokens.

A donor can be made so that a row that is combined from shared rows is no longer than others and still the likeliest nearly
everywhere (arXiv 2601.00065). A row that is only bad does the same. Neither is seen in the rows; both are seen on a text.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stitch.conversions.retokenization.bias import MOST, mass
from stitch.conversions.retokenization.rows import filled
from stitch.conversions.retokenization.scoring import Head
from stitch.text.correspondence import Correspondence

TIMES = 30  # as often as the text has a token, which is counted once more than it occurs; without a donor the most is about 11


@dataclass(frozen=True)
class Loud:
    """A token, its mean probability, and its share of the text."""

    token: int
    said: float
    share: float


def loud(
    stream: Float[Tensor, "positions d"], targets: Int[Tensor, " positions"], head: Head, found: Correspondence,
    cap: float | None,
) -> list[Loud]:  # fmt: skip
    """The made rows whose summed probability on `stream` is above TIMES · (their count in `targets` + 1), loudest first."""
    stream, targets = stream[:MOST], targets[:MOST]
    made = filled(found)
    counts = torch.bincount(targets.cpu(), minlength=len(head))[made].double()
    said = mass(stream, head, cap)[made]
    places = (said > TIMES * (counts + 1)).nonzero()[:, 0].tolist()
    told = [Loud(int(made[at]), float(said[at]) / len(stream), float(counts[at]) / len(stream)) for at in places]
    return sorted(told, key=lambda one: -one.said)
