"""Attention step by step, as a circuit has it: what a block's heads compute from its normed input, and what they pass on."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stitch.internals.weights import Attention


@dataclass(frozen=True)
class Heads:
    """Queries, keys and values before rotation, after the norms of the former where there are some."""

    q: Float[Tensor, "windows heads t d"]
    k: Float[Tensor, "windows groups t d"]
    v: Float[Tensor, "windows groups t d"]


def heads_of(attention: Attention, x: Float[Tensor, "windows t width"]) -> Heads:
    """In the input's dtype."""

    def read(weight: Tensor, bias: Tensor | None, gain: Tensor | None = None) -> Tensor:
        out = torch.einsum("wti,ihd->whtd", x, weight.to(x))
        out = out if bias is None else out + bias.to(x)[:, None]
        if gain is None:
            return out
        return out * (out.square().mean(-1, keepdim=True) + attention.eps).rsqrt() * gain.to(x)

    return Heads(
        read(attention.q, attention.q_bias, attention.q_gain),
        read(attention.k, attention.k_bias, attention.k_gain),
        read(attention.v, attention.v_bias),
    )


def rotated(
    x: Float[Tensor, "*batch t d"], frequencies: Float[Tensor, " planes"], at: Int[Tensor, " t"] | None = None
) -> Float[Tensor, "*batch t d"]:
    """`x` turned by its position (0, 1, … unless `at` says otherwise) in plane f of dimensions f and f + d/2."""
    if not frequencies.any():
        return x
    places = torch.arange(x.shape[-2]) if at is None else at.cpu()
    angles = places.double()[:, None] * frequencies
    cos, sin = angles.cos().to(x), angles.sin().to(x)
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def scores(
    q: Float[Tensor, "windows heads rows d"],
    k: Float[Tensor, "windows groups t d"],
    frequencies: Float[Tensor, " planes"],
    scale: float,
    at: Int[Tensor, " rows"] | None = None,
) -> Float[Tensor, "windows heads rows t"]:
    """Before the softmax; −∞ at keys that come later. Queries are those at the positions `at`, without it at all."""
    place = torch.arange(k.shape[2], device=q.device)
    at = place if at is None else at
    q, k = rotated(q, frequencies, at), rotated(k, frequencies).repeat_interleave(q.shape[1] // k.shape[1], 1)
    later = place > at[:, None]
    return (scale * q @ k.transpose(-1, -2)).masked_fill(later, -torch.inf)


def mixed(
    attention: Float[Tensor, "windows heads t t"], v: Float[Tensor, "windows groups t d"]
) -> Float[Tensor, "windows heads t d"]:
    """What each head attends to."""
    return attention @ v.repeat_interleave(attention.shape[1] // v.shape[1], 1)


def stacked(x: Float[Tensor, "windows groups t d"]) -> Float[Tensor, "windows t stacked"]:
    """Heads side by side."""
    return x.transpose(1, 2).flatten(2)
