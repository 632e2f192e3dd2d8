"""Attention computed step by step from a block's weights: queries, keys and values, rotation, scores, and outputs."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stitch.internals.weights import Attention


@dataclass(frozen=True)
class Heads:
    """Queries, keys and values of a block's heads: before rotation, after the norms of queries and keys where there are some."""

    q: Float[Tensor, "windows heads t d"]
    k: Float[Tensor, "windows groups t d"]
    v: Float[Tensor, "windows groups t d"]


def heads_of(attention: Attention, x: Float[Tensor, "windows t width"]) -> Heads:
    """What the heads compute from `x`, the input after its norm; in the dtype of `x`."""

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


def turned(
    x: Float[Tensor, "*batch d"], cos: Float[Tensor, "*angles planes"], sin: Float[Tensor, "*angles planes"]
) -> Float[Tensor, "*batch d"]:
    """`x` rotated in plane f, made of dimensions f and f + d/2, by the angle with this cosine and sine."""
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def rotated(
    x: Float[Tensor, "*batch t d"], frequencies: Float[Tensor, " planes"], at: Int[Tensor, " t"] | None = None
) -> Float[Tensor, "*batch t d"]:
    """`x` after RoPE: plane f rotated by frequency f (radians per position) times the position, 0, 1, … or those in `at`.

    Source: Su et al. 2021, arXiv:2104.09864.
    """
    if not frequencies.any():
        return x
    places = torch.arange(x.shape[-2]) if at is None else at.cpu()
    angles = places.double()[:, None] * frequencies
    return turned(x, angles.cos().to(x), angles.sin().to(x))


def scores(
    q: Float[Tensor, "windows heads rows d"],
    k: Float[Tensor, "windows groups t d"],
    frequencies: Float[Tensor, " planes"],
    scale: float,
    at: Int[Tensor, " rows"] | None = None,
) -> Float[Tensor, "windows heads rows t"]:
    """Attention scores before the softmax, −∞ for keys after the query. Queries are at the positions `at`; default: at all."""
    place = torch.arange(k.shape[2], device=q.device)
    at = place if at is None else at
    q, k = rotated(q, frequencies, at), rotated(k, frequencies).repeat_interleave(q.shape[1] // k.shape[1], 1)
    later = place > at[:, None]
    return (scale * q @ k.transpose(-1, -2)).masked_fill(later, -torch.inf)


def mixed(
    attention: Float[Tensor, "windows heads t t"], v: Float[Tensor, "windows groups t d"]
) -> Float[Tensor, "windows heads t d"]:
    """The mean of the values that each head attends to, weighted by its attention."""
    return attention @ v.repeat_interleave(attention.shape[1] // v.shape[1], 1)


def stacked(x: Float[Tensor, "windows groups t d"]) -> Float[Tensor, "windows t stacked"]:
    """The vectors of all heads side by side."""
    return x.transpose(1, 2).flatten(2)
