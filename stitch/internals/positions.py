"""Attention heads that look a fixed number of tokens back, constructed without training, for RoPE and for learned positions.

The score of query i and key j is Σ_f w_f cos(θ_f (i − j − offset)). It is 1, its maximum, at j = i − offset. The weights w are
chosen so that all other keys score as far below as possible. Learned positions get codes (cos θ_f p, sin θ_f p), which give the
same scores.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stitch.errors import UsageError
from stitch.regression.weighted import weighted_ridge

OFF_MASS = 1e-6  # at most this share of a constructed head's attention goes to other tokens


@dataclass(frozen=True)
class Profile:
    """A score that depends on the distance Δ = i − j alone: Σ_f amplitude_f cos(θ_f Δ − phase_f)."""

    amplitude: Float[Tensor, " planes"]
    phase: Float[Tensor, " planes"]


@dataclass(frozen=True)
class OffsetHead:
    """A head that looks `offset` tokens back. Its `weights` w sum to 1, and all other keys score lower by at least `gap`.

    Times `mass`, the scores put all but `OFF_MASS` of the attention on the right token.
    """

    offset: int
    weights: Float[Tensor, " planes"]
    frequencies: Float[Tensor, " planes"]
    gap: float
    mass: float

    def profile(self, units: float) -> Profile:
        """The head's scores times `units`."""
        return Profile(units * self.weights, self.offset * self.frequencies)

    def reach(self, limit: int) -> int:
        """The longest window, up to `limit` tokens, in which all other keys score lower by at least half the gap."""
        behind = torch.arange(1, limit - self.offset, dtype=torch.float64)
        scores = (behind[:, None] * self.frequencies).cos() @ self.weights
        near = (scores > 1 - self.gap / 2).nonzero()
        return limit if not len(near) else self.offset + 1 + int(near[0])

    @property
    def tolerance(self) -> float:
        """The factor by which the lengths of keys may differ while at least half of the gap remains."""
        return (1 - self.gap / 2) / (1 - self.gap)


def offset_head(frequencies: Float[Tensor, " planes"], offset: int, length: int) -> OffsetHead:
    """The head with the widest gap in windows of `length` tokens, found by linear programming.

    Raises: UsageError when the frequencies are too low to tell neighbours apart, or the window is not longer than the offset.
    """
    from scipy.optimize import linprog

    if offset >= length:
        raise UsageError(
            f"a head that looks {offset} tokens back needs a longer context than {length}: choose another host."
        )
    others = np.array([delta for delta in range(-offset, length - offset) if delta])
    theta = frequencies.double().cpu().numpy()
    lost = 1 - np.cos(np.outer(others, theta))  # by how much each plane's score is lower at every other key
    found = linprog(
        np.append(np.zeros(len(theta)), -1.0),
        A_ub=np.hstack([-lost, np.ones((len(others), 1))]),
        b_ub=np.zeros(len(others)),
        A_eq=np.append(np.ones(len(theta)), 0.0)[None],
        b_eq=[1.0],
        bounds=[(0, None)] * len(theta) + [(None, None)],
        method="highs",
    )
    gap = float(found.x[-1]) if found.success else 0.0
    if gap < 1e-3:
        raise UsageError(
            f"the host's {len(theta)} planes must tell {length} positions apart to attend {offset} back; the gap is {gap:.1e}: "
            "choose a larger head size or smaller rope_theta."
        )
    weights = np.maximum(found.x[:-1], 0)
    weights /= weights.sum()
    gap = float((lost @ weights).min())
    return OffsetHead(
        offset, torch.from_numpy(weights), frequencies.double().cpu(), gap, math.log(length / OFF_MASS) / gap
    )


def fitted_profile(
    scores: Float[Tensor, "prompts length length"],
    attention: Float[Tensor, "prompts length length"],
    frequencies: Float[Tensor, " planes"],
    usable: Bool[Tensor, " planes"],
) -> Profile:
    """The profile on the `usable` planes that is nearest to the `scores`, up to a constant for each query.

    Weighted least squares: half of the weight follows the `attention` that each key should get, half is equal for all keys.
    """
    length = scores.shape[1]
    distance = (torch.arange(length)[:, None] - torch.arange(length)).clamp_min(0)
    causal = torch.ones(length, length, dtype=torch.float64).tril()
    weights = (attention + causal / causal.sum(1, keepdim=True)).mean(0) / 2
    goal = (scores * (attention + causal / causal.sum(1, keepdim=True)) / 2).mean(0) / weights.clamp_min(1e-30) * causal
    angles = distance[..., None] * frequencies[usable]
    design = torch.cat([angles.cos(), angles.sin()], -1)

    def centred(value: Tensor) -> Tensor:
        """`value` less its weighted mean over the keys of each query, times the root of the weights."""
        mean = (weights[..., None] * value).sum(1, keepdim=True) / weights.sum(1)[:, None, None]
        return (weights.sqrt()[..., None] * (value - mean)).flatten(0, 1)

    cosines, sines = weighted_ridge(centred(design), centred(goal[..., None]), 1e-6)[:, 0].chunk(2)
    amplitude, phase = (torch.zeros(len(frequencies), dtype=torch.float64) for _ in range(2))
    amplitude[usable], phase[usable] = (cosines.square() + sines.square()).sqrt(), torch.atan2(sines, cosines)
    return Profile(amplitude, phase)


def code_frequencies(planes: int, length: int) -> Float[Tensor, " planes"]:
    """Frequencies of codes that tell `length` positions apart: a geometric series from 1/3 of a turn per position to half a turn
    over all of them."""
    fastest, slowest = 2 * math.pi / 3, math.pi / length
    return torch.logspace(math.log10(fastest), math.log10(slowest), planes, dtype=torch.float64)


def position_codes(frequencies: Float[Tensor, " planes"], length: int) -> Float[Tensor, "length columns"]:
    """The code of every position: the cosines of its angles, then the sines; each row has length 1."""
    angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], 1) / math.sqrt(len(frequencies))
