"""Linear attention: its state after a context is a matrix, which can be moved exactly into a branch of the MLP.

    y_t = scale · Σ_heads φ(q_t)ᵀ S_t W_O,   S_t = Σ_{j ≤ t} φ(k_j) v_jᵀ = S_context + Σ_{own j} φ(k_j) v_jᵀ

The first part of the sum is a branch parallel to the attention with the same normed input: W_up = W_q, activation φ,
W_down = scale · S_context W_O (ICLCA, arXiv 2406.02847). With this branch in every block the model processes the rest of the text
as if the context preceded it, provided positions continue from the end of the context.

Normalised attention, y_t = φ(q)ᵀS / φ(q)ᵀz, has no such branch, as it would have to divide: (S, z) remains a state from which
attention starts. With rotary positions q_t depends on t, which a fixed matrix cannot follow.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stitch.errors import UsageError
from stitch.internals.weights import Attention

Features = Callable[[Tensor], Tensor]  # acts on the last dimension


def identity(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True, kw_only=True)
class LinearAttention:
    """Weights of a block's attention and the features of its queries and keys. If `normalised` or `rotary`, it has no branch."""

    weights: Attention
    features: Features = identity
    normalised: bool = False
    rotary: bool = False


@dataclass(frozen=True)
class State:
    """Fast weights: S = Σ φ(k) vᵀ and z = Σ φ(k)."""

    memory: Float[Tensor, "groups features d_head"]
    mass: Float[Tensor, "groups features"]


@dataclass(frozen=True)
class Branch:
    """φ(x up + bias), head by head, times down: an addition to the output of the MLP."""

    up: Float[Tensor, "d heads d_head"]
    bias: Float[Tensor, "heads d_head"] | None
    features: Features
    down: Float[Tensor, "heads features d"]

    def __call__(self, x: Float[Tensor, "tokens d"]) -> Float[Tensor, "tokens d"]:
        return torch.einsum("thf,hfd->td", self.features(_read(x, self.up, self.bias)), self.down)


def remember(layer: LinearAttention, x: Float[Tensor, "tokens d"]) -> State:
    """The state of a block's attention after the (normed) tokens `x`."""
    weights = layer.weights
    keys = layer.features(_read(x, weights.k, weights.k_bias))
    return State(torch.einsum("tgf,tgv->gfv", keys, _read(x, weights.v, weights.v_bias)), keys.sum(0))


def attend(
    layer: LinearAttention, x: Float[Tensor, "tokens d"], state: State | None = None
) -> Float[Tensor, "tokens d"]:
    """Linear attention over the tokens `x`, continued from `state`, with output bias. Raises UsageError for rotary positions."""
    if layer.rotary:
        raise UsageError(
            "linear attention here must have no rotary positions; the layer has: use the recurrent model's own forward."
        )
    weights = layer.weights
    queries = layer.features(_read(x, weights.q, weights.q_bias)).unflatten(1, (-1, weights.shared))
    keys, values = layer.features(_read(x, weights.k, weights.k_bias)), _read(x, weights.v, weights.v_bias)
    scores = torch.einsum("tgsf,jgf->gstj", queries, keys).tril()
    found, mass = torch.einsum("gstj,jgv->tgsv", scores, values), scores.sum(3).movedim(2, 0)
    if state is not None:
        found = found + torch.einsum("tgsf,gfv->tgsv", queries, state.memory)
        mass = mass + torch.einsum("tgsf,gf->tgs", queries, state.mass)
    found = found / mass[..., None] if layer.normalised else weights.scale * found
    written = torch.einsum("thv,hvd->td", found.flatten(1, 2), weights.o)
    return written if weights.o_bias is None else written + weights.o_bias


def branch(layer: LinearAttention, state: State) -> Branch:
    """The branch equivalent to `state`. Raises UsageError for normalised or rotary attention and for a state of other heads."""
    weights = layer.weights
    if layer.normalised:
        raise UsageError(
            "attention must be unnormalised to become a branch; this one is not, and an MLP cannot divide by φ(q)ᵀz: keep (S, z) "
            "as the state from which attention starts."
        )
    if layer.rotary:
        raise UsageError(
            "attention must have no rotary positions to become a branch; this one has, and its queries depend on the position: "
            "consolidate the softmax model instead."
        )
    wanted = weights.v.shape[1:]
    if (got := (state.memory.shape[0], state.memory.shape[2])) != tuple(wanted):
        raise UsageError(
            f"state must be of {wanted[0]} key heads of {wanted[1]}; got {got[0]} of {got[1]}: use the state of this block."
        )
    memory = state.memory.repeat_interleave(weights.shared, 0)
    down = weights.scale * torch.einsum("hfv,hvd->hfd", memory, weights.o)
    return Branch(weights.q, weights.q_bias, layer.features, down)


def _read(
    x: Float[Tensor, "tokens d"], matrix: Float[Tensor, "d heads d_head"], bias: Float[Tensor, "heads d_head"] | None
) -> Float[Tensor, "tokens heads d_head"]:
    read = torch.einsum("td,dhf->thf", x, matrix)
    return read if bias is None else read + bias
