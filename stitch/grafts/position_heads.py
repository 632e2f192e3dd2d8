"""A donor's learned positions in a host with rotary ones: heads in a block before the donor's own write them into the stream.

Head k attends to BOS with a probability c_k(t) that depends on the position t alone, and otherwise to tokens of which it reads
nothing, so that it writes c_k(t) times a vector. Its score for BOS is log t + logit c_k(t), all others are 0. Functions c_k that
follow the leading left singular vectors of the table of positions make the written table nearly the best of its rank.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stitch.internals.positions import Profile
from stitch.regression.weighted import weighted_ridge

HEADS = 8  # at most
LEAST = 0.02  # the least probability that a head gives to BOS, and to the others
RIDGE = 1e-3  # of scores; less makes them sums of large numbers that cancel


@dataclass(frozen=True)
class PositionHeads:
    """What a host gets in place of a table of positions. BOS stands at position 0 and nowhere else.

    BOS has `bos` in its embedding and other tokens `others`. Head k attends to BOS by `profiles[k]` and writes `write[k]`. Of the
    donor's table, less its mean, the share `lost` is not written. `written` is the table as the host has it.
    """

    bos: Float[Tensor, " d"]
    others: Float[Tensor, " d"]
    profiles: list[Profile]
    write: Float[Tensor, "heads d"]
    written: Float[Tensor, "positions d"]
    lost: float


def position_heads(
    table: Float[Tensor, "positions d"], frequencies: Float[Tensor, " planes"], count: int
) -> PositionHeads:
    """At most `count` heads for a table of positions, with RoPE of these frequencies in radians per position.

    Positions count as often as they occur in texts of any length up to that of the table. Without heads all tokens but BOS get
    the mean.
    """
    place = torch.arange(1, len(table), dtype=torch.float64)
    often = (len(table) - place) / (len(table) - place).mean()
    rows = table[1:].double().cpu()
    centred = rows - (often[:, None] * rows).sum(0) / often.sum()
    directions = torch.linalg.svd(often.sqrt()[:, None] * centred, full_matrices=False)[0] / often.sqrt()[:, None]
    profiles, probabilities = [], [torch.ones_like(place)]
    for direction in directions.T[:count]:
        profile, probability = _attending_to_first(direction, often, frequencies.double().cpu())
        profiles.append(profile)
        probabilities.append(probability)
    functions = torch.stack(probabilities, 1)
    vectors = weighted_ridge(functions, rows, 1e-8, often)
    written = torch.cat([table[:1].double().cpu(), functions @ vectors])
    missing, total = (float((often[:, None] * each.square()).sum()) for each in (rows - written[1:], centred))
    return PositionHeads(
        bos=written[0] - vectors[1:].sum(0),
        others=vectors[0],
        profiles=profiles,
        write=vectors[1:],
        written=written,
        lost=missing / total if total else 0.0,
    )


def one_for_all(table: Float[Tensor, "positions d"]) -> PositionHeads:
    """The mean of the table for every token, BOS included; no heads."""
    rows = table.double().cpu()
    mean = rows.mean(0)
    return PositionHeads(mean, mean, [], rows[:0], mean.expand_as(rows), 1.0)


def _attending_to_first(
    function: Float[Tensor, " positions"], often: Float[Tensor, " positions"], frequencies: Float[Tensor, " planes"]
) -> tuple[Profile, Float[Tensor, " positions"]]:
    """Scores for BOS with which attention to it is nearest to a function of the position, up to its scale, and that attention.

    Weighted least squares on the scores, whose errors count more where they change the attention more.
    """
    place = torch.arange(1, len(function) + 1, dtype=torch.float64)
    if (often * function * (place.log() - (often * place.log()).mean())).sum() > 0:
        function = -function  # attention to BOS decreases by itself, so that less is left for the scores
    share = (function - function.min()) / (function.max() - function.min())
    goal = LEAST + (1 - 2 * LEAST) * share
    angles = place[:, None] * frequencies
    waves = torch.cat([angles.cos(), angles.sin()], 1)
    found = weighted_ridge(waves, (goal.logit() + place.log())[:, None], RIDGE, often * goal * (1 - goal))[:, 0]
    cosines, sines = found.chunk(2)
    profile = Profile((cosines.square() + sines.square()).sqrt(), torch.atan2(sines, cosines))
    return profile, (waves @ found - place.log()).sigmoid()
