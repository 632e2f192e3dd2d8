"""Feature maps of keys and queries for recurrent attention, and the priority of old keys.

This file is saved with every recurrent checkpoint, beside modeling_recurrent.py. Keys are [batch, groups, tokens, width], and
queries [batch, groups, shared, tokens, width], both scaled so that q·k is the score. A map returns (plain, log) with
φ = plain · exp(log); plain may be None (ones), and log may have a single column.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Features = tuple[Tensor | None, Tensor]


@dataclass(frozen=True)
class HeadShape:
    """Shape of a block's attention: `groups` key heads of `width` dimensions, each read by `shared` query heads."""

    groups: int
    shared: int
    width: int


class Exponents(nn.Module):
    """Logs of features, with separate weights for each head: xᵀAx + Wx + b, plus an MLP of `hidden` units if that is above 0.

    `quadratic` False leaves A out.
    """

    def __init__(self, heads: tuple[int, ...], width: int, dimension: int, hidden: int, quadratic: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(*heads, dimension, width))
        self.bias = nn.Parameter(torch.zeros(*heads, dimension))
        # xᵀAx is one scalar for all features.
        self.square = nn.Parameter(torch.zeros(*heads, width, width)) if quadratic else None
        self.up = nn.Parameter(torch.zeros(*heads, hidden, width)) if hidden else None
        self.up_bias = nn.Parameter(torch.zeros(*heads, hidden)) if hidden else None
        self.down = nn.Parameter(torch.zeros(*heads, dimension, hidden)) if hidden else None

    def forward(self, x: Tensor) -> Tensor:
        """[batch, *heads, tokens, width] → [batch, *heads, tokens, dimension]"""
        y = x @ self.weight.to(x).mT + self.bias.to(x).unsqueeze(-2)
        if self.square is not None:
            y = y + (x @ self.square.to(x) * x).sum(-1, keepdim=True)
        if self.up is None or self.up_bias is None or self.down is None:
            return y
        return y + nn.functional.silu(x @ self.up.to(x).mT + self.up_bias.to(x).unsqueeze(-2)) @ self.down.to(x).mT


class Hedgehog(nn.Module):
    """φ(x) = exp(`Exponents`(x)), with separate weights for each query head and each key head.

    Hedgehog (Zhang et al. 2024) has only W = [U; −U]; fitting starts from there.
    """

    def __init__(self, shape: HeadShape, dimension: int, hidden: int):
        super().__init__()
        self.dimension = self.scales = dimension
        self.key = Exponents((shape.groups,), shape.width, dimension, hidden)
        self.query = Exponents((shape.groups, shape.shared), shape.width, dimension, hidden)

    def keys(self, k: Tensor) -> Features:
        return None, self.key(k)

    def queries(self, q: Tensor) -> Features:
        return None, self.query(q)


class Mean(nn.Module):
    """One feature that is 1 for every key: the state is the sum and the number of old values; the query weighs them."""

    dimension = scales = 1

    def __init__(self, shape: HeadShape, hidden: int):
        super().__init__()
        self.query = Exponents((shape.groups, shape.shared), shape.width, 1, hidden)

    def keys(self, k: Tensor) -> Features:
        return None, torch.zeros_like(k[..., :1])

    def queries(self, q: Tensor) -> Features:
        return None, self.query(q)


class Centred(nn.Module):
    """Base of maps whose features are computed from k' = k − μ_k and q' = q − μ_q, the means being those of the group.

    q·k = q'·k' + q·μ_k + μ_q·k'. The second term is added to the query's log, the third to the key's.
    """

    features: Callable[[Tensor], Features]  # of centred queries or keys; a method of each subclass

    def __init__(self, shape: HeadShape):
        super().__init__()
        self.key_mean = nn.Parameter(torch.zeros(shape.groups, shape.width))
        self.query_mean = nn.Parameter(torch.zeros(shape.groups, shape.width))

    def keys(self, k: Tensor) -> Features:
        centred = k - self.key_mean.to(k)[:, None]
        plain, log = self.features(centred)
        return plain, log + centred @ self.query_mean.to(k).unsqueeze(-1)

    def queries(self, q: Tensor) -> Features:
        plain, log = self.features(q - self.query_mean.to(q)[:, None, None])
        return plain, log + q @ self.key_mean.to(q)[:, None, :, None]


class Taylor(Centred):
    """Approximates e^s by 1 + s + s²/2, where s = q'·k'. It has 1 + d + d(d+1)/2 features."""

    scales = 1

    def __init__(self, shape: HeadShape):
        super().__init__(shape)
        self.dimension = 1 + shape.width + shape.width * (shape.width + 1) // 2

    def features(self, x: Tensor) -> Features:
        first, second = torch.triu_indices(x.shape[-1], x.shape[-1], device=x.device)
        pairs = x[..., first] * x[..., second] * torch.where(first == second, 0.5, 1.0).to(x).sqrt()
        return torch.cat([torch.ones_like(x[..., :1]), x, pairs], -1), torch.zeros_like(x[..., :1])


class Random(Centred):
    """Positive random features (Choromanski et al. 2021): E[φ(q')·φ(k')] = e^{q'·k'}, φ(x) = exp(Wx − |x|²/2) / √D."""

    def __init__(self, shape: HeadShape, dimension: int):
        super().__init__(shape)
        self.dimension = self.scales = dimension
        self.directions = nn.Parameter(torch.zeros(shape.groups, dimension, shape.width))

    def features(self, x: Tensor) -> Features:
        directions = self.directions.to(x)
        projected = x @ (directions if x.ndim == 4 else directions[:, None]).mT
        return None, projected - x.square().sum(-1, keepdim=True) / 2 - math.log(self.dimension) / 2


class Identity(nn.Module):
    """φ(x) = x: linear attention."""

    scales = 1

    def __init__(self, shape: HeadShape):
        super().__init__()
        self.dimension = shape.width

    def keys(self, k: Tensor) -> Features:
        return k, torch.zeros_like(k[..., :1])

    queries = keys


class Priority(nn.Module):
    """Priority of a key for the slots: a function of key and value, normalised to mean 0 and variance 1, plus `slope` · position.

    So of two equal keys the later one is kept. With a large slope the slots are a window.
    """

    def __init__(self, shape: HeadShape, hidden: int):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(shape.groups, 2 * shape.width), requires_grad=False)
        self.scale = nn.Parameter(torch.ones(shape.groups, 2 * shape.width), requires_grad=False)
        self.slope = nn.Parameter(torch.zeros(shape.groups))
        self.read = Exponents((shape.groups,), 2 * shape.width, 1, hidden, quadratic=False)

    def forward(self, k: Tensor, v: Tensor, position: Tensor) -> Tensor:
        """Keys and values [batch, groups, tokens, width], their positions [tokens] → [batch, groups, tokens]."""
        x = (torch.cat([k, v], -1) - self.mean.to(k)[:, None]) * self.scale.to(k)[:, None]
        return self.read(x).squeeze(-1) + self.slope.to(k)[:, None] * position.to(k)
