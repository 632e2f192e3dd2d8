"""Heads that attend a fixed number of tokens back, written from scratch: on RoPE planes, or on codes of learned positions.

Both score Σ_f w_f cos(θ_f (i − j − offset)): largest, and 1, where j = i − offset. What the weights w choose is how far below all
other keys are. Learned positions get codes (cos θ_f p, sin θ_f p), so that one kind of head serves both.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stitch.errors import UsageError

OFF_MASS = 1e-6  # of a synthesised head's attention, at most, beside the token it is for


@dataclass(frozen=True)
class Profile:
    """A score by the distance Δ = i − j alone: Σ_f amplitude_f cos(θ_f Δ − phase_f)."""

    amplitude: Float[Tensor, " planes"]
    phase: Float[Tensor, " planes"]


@dataclass(frozen=True)
class OffsetHead:
    """`weights` sum to 1. Scores differ by `gap` per unit or more; `mass` units put all but `OFF_MASS` of the attention right."""

    offset: int
    weights: Float[Tensor, " planes"]
    frequencies: Float[Tensor, " planes"]
    gap: float
    mass: float

    def profile(self, units: float) -> Profile:
        return Profile(units * self.weights, self.offset * self.frequencies)

    def reach(self, limit: int) -> int:
        """The longest window, up to `limit`, over which no other key comes nearer than half the gap."""
        behind = torch.arange(1, limit - self.offset, dtype=torch.float64)
        scores = (behind[:, None] * self.frequencies).cos() @ self.weights
        near = (scores > 1 - self.gap / 2).nonzero()
        return limit if not len(near) else self.offset + 1 + int(near[0])

    @property
    def tolerance(self) -> float:
        """By which factor lengths of keys may differ before another key can win half of the gap."""
        return (1 - self.gap / 2) / (1 - self.gap)


def offset_head(frequencies: Float[Tensor, " planes"], offset: int, length: int) -> OffsetHead:
    """The planes' weights with the widest gap among windows of `length` tokens, by linear programming.

    Raises: UsageError where planes turn too slowly to tell neighbours apart, or the window is not longer than the offset.
    """
    from scipy.optimize import linprog

    if offset >= length:
        raise UsageError(f"a head {offset} tokens back needs a longer context than {length}: choose another host.")
    others = np.array([delta for delta in range(-offset, length - offset) if delta])
    theta = frequencies.double().cpu().numpy()
    lost = 1 - np.cos(np.outer(others, theta))  # of each plane's score, at every other key
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
    wanted: Float[Tensor, "prompts length length"],
    attention: Float[Tensor, "prompts length length"],
    frequencies: Float[Tensor, " planes"],
    usable: Bool[Tensor, " planes"],
) -> Profile:
    """The profile nearest to the `wanted` scores, each row up to a constant: least squares, half of the weight on keys by the
    `attention` that they should get, half on all alike."""
    length = wanted.shape[1]
    distance = (torch.arange(length)[:, None] - torch.arange(length)).clamp_min(0)
    causal = torch.ones(length, length, dtype=torch.float64).tril()
    weights = (attention + causal / causal.sum(1, keepdim=True)).mean(0) / 2
    goal = (wanted * (attention + causal / causal.sum(1, keepdim=True)) / 2).mean(0) / weights.clamp_min(1e-30) * causal
    angles = distance[..., None] * frequencies[usable]
    design = torch.cat([angles.cos(), angles.sin()], -1)

    def centred(value: Tensor) -> Tensor:
        """By row, in the metric of the weights."""
        mean = (weights[..., None] * value).sum(1, keepdim=True) / weights.sum(1)[:, None, None]
        return (weights.sqrt()[..., None] * (value - mean)).flatten(0, 1)

    columns = centred(design)
    square = columns.T @ columns
    square += 1e-6 * square.diagonal().mean() * torch.eye(len(square), dtype=square.dtype)
    cosines, sines = torch.linalg.solve(square, columns.T @ centred(goal[..., None]))[:, 0].chunk(2)
    amplitude, phase = (torch.zeros(len(frequencies), dtype=torch.float64) for _ in range(2))
    amplitude[usable], phase[usable] = (cosines.square() + sines.square()).sqrt(), torch.atan2(sines, cosines)
    return Profile(amplitude, phase)


def code_frequencies(planes: int, length: int) -> Float[Tensor, " planes"]:
    """Of codes that tell `length` positions apart: geometric, from a turn in three positions to half a turn in all."""
    fastest, slowest = 2 * math.pi / 3, math.pi / length
    return torch.logspace(math.log10(fastest), math.log10(slowest), planes, dtype=torch.float64)


def position_codes(frequencies: Float[Tensor, " planes"], length: int) -> Float[Tensor, "length columns"]:
    """Cosines and then sines of every position's angles, each row of length 1."""
    angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], 1) / math.sqrt(len(frequencies))
