"""Bridges of families whose MLP ends in a norm: what it writes is g ⊙ n(N W), with n(u) = u / rms(u) and the norm's gain g.

The size of what a token writes is fixed by g, so W can only choose its direction. It is fitted first: n does not depend on the
size of N W, so the wanted row is (gap ⊘ g) with the size that N W has. The gain is fitted then, channel by channel.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

LEAST_GAIN = 0.1  # of the median: smaller gains are taken for this much, as the gap is divided by them
TINY = 1e-30


def normalised(rows: Float[Tensor, "*tokens d"]) -> Float[Tensor, "*tokens d"]:
    """Rows divided by the root of their mean square."""
    return rows / rows.square().mean(-1, keepdim=True).sqrt().clamp_min(TINY)


def direction(
    gap: Float[Tensor, "tokens d"],
    goal: Float[Tensor, "tokens d"],
    projected: Float[Tensor, "tokens d"],
    gain: Float[Tensor, " d"],
) -> tuple[Float[Tensor, "tokens d"], Float[Tensor, "tokens 1"]]:
    """What N W should be, and the tokens' weights: (‖gap‖ / ‖goal‖) / ‖N W‖, so that an error counts as it does in the stream."""
    least = LEAST_GAIN * gain.abs().median()
    aim = gap / torch.where(gain.abs() < least, torch.where(gain < 0, -least, least), gain)
    size, sizes = projected.norm(dim=1, keepdim=True), aim.norm(dim=1, keepdim=True).clamp_min(TINY)
    weights = gap.norm(dim=1, keepdim=True) / goal.norm(dim=1, keepdim=True).clamp_min(TINY) / size.clamp_min(TINY)
    return aim * size / sizes, weights


def fit_gain(pieces: Iterable[tuple[Tensor, Tensor, Tensor]], shuffled: int | None = None) -> Float[Tensor, " d"]:
    """The gain with the least Σ ‖gap − g ⊙ n(N W)‖² / ‖goal‖², from pieces of N W, gap and goal, each [windows, context, d].

    With `shuffled`, a seed, tokens get the gaps of others: the null.
    """
    generator = torch.Generator().manual_seed(shuffled or 0)
    products, squares = torch.zeros(()), torch.zeros(())
    for projected, gap, goal in pieces:
        projected, gap, goal = (part.flatten(0, 1) for part in (projected, gap, goal))
        if shuffled is not None:
            gap = gap[torch.randperm(len(gap), generator=generator)]
        unit, weight = normalised(projected), 1 / goal.norm(dim=1, keepdim=True).clamp_min(TINY) ** 2
        products, squares = products + (weight * gap * unit).sum(0), squares + (weight * unit**2).sum(0)
    return products / squares.clamp_min(TINY)
