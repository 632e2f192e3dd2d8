"""The error of merging by block: predicted by the closed form from moments, and measured on held-out attention."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from stitch.conversions.heads.contraction import predicted_error, predicted_value_error
from stitch.conversions.heads.merge import Merged, Values, query_heads
from stitch.conversions.heads.moments import HeadGroup, attention_rows, normed
from stitch.conversions.heads.refine import error
from stitch.internals import weights
from stitch.internals.attend import heads_of, scores, stacked
from stitch.models.model import Model

WINDOWS = 8  # held-out windows on which errors are measured


@dataclass
class ErrorLog:
    """Errors by block as shares of variance: of scores, with equal weights for the keys of a row, and of head outputs.

    `fit.convert` calls it once per block.
    """

    predicted_by: str  # name of the closed-form method
    also: str  # name of another method whose scores are measured
    rows: list[dict[str, float]] = field(default_factory=list)

    def __call__(
        self, model: Model, block: int, found: list[HeadGroup], made: dict[str, Merged], held_out: Tensor
    ) -> None:
        closed, other, stream = made[self.predicted_by], made[self.also], held_out[:WINDOWS]
        sums: dict[str, float] = {}

        def add(name: str, value: float) -> None:
            sums[name] = sums.get(name, 0.0) + value / len(found)

        for members, group, keys, better, values in zip(
            closed.groups, found, closed.keys, other.keys, closed.values, strict=True
        ):
            add("keys_predicted", predicted_error(keys, group.keys))
            held = attention_rows(model, block, members, stream, seed=0, uniform=1.0)
            add("keys_measured", error(keys, held))
            add("keys_refined", error(better, held))
            add("values_predicted", predicted_value_error(values, group.values, group.output, group.head_of))
            add("values_measured", _wrong_values(model, block, members, group, values, stream))
        self.rows.append(sums)


def _wrong_values(
    model: Model, block: int, members: tuple[int, ...], group: HeadGroup, values: Values, stream: Tensor
) -> float:
    attention = weights.attention(model, block)
    of = heads_of(attention, normed(model, block, stream))
    theta, which = weights.frequencies(model), query_heads(members, attention.shared)
    weight = scores(of.q, of.k, theta, attention.scale).softmax(-1)[:, which]
    attended = torch.einsum("whij,wjs->hwis", weight, stacked(of.v[:, list(members)])).flatten(1, 2).double().cpu()
    d, wrong, total = group.output.shape[1], 0.0, 0.0
    for read, new, own, head in zip(attended, values.output, group.output, group.head_of, strict=True):
        right = read[:, head * d : (head + 1) * d] @ own
        wrong += float((right - read @ values.shared.T @ new).square().sum())
        total += float(right.square().sum())
    return wrong / max(total, 1e-300)
