"""A block's heads and neurons on any stream, wherever it comes from: what a model computes, in another order than its own."""

import torch
from jaxtyping import Float
from torch import Tensor

from stitch.internals import attend, weights
from stitch.internals.transcoders import FeatureMlp
from stitch.internals.weights import Norm
from stitch.models.model import Model


def with_gain(norm: Norm, read: Float[Tensor, "*prompts d"]) -> Float[Tensor, "*prompts d"]:
    """What a norm gives that makes this of a stream."""
    return read * norm.gain if norm.bias is None else read * norm.gain + norm.bias


def head_outputs(
    model: Model, block: int, x: Float[Tensor, "prompts length d"]
) -> Float[Tensor, "prompts length columns"]:
    """What its heads give when they read `x`, a stream as the norm makes it, side by side, before they write it."""
    own, y = weights.attention(model, block), with_gain(weights.norm(model, "attention", block), x)

    of = attend.heads_of(own, y)
    turn = weights.frequencies(model)
    q, k = attend.rotated(of.q, turn), attend.rotated(of.k, turn)
    k, v = (one.repeat_interleave(own.shared, 1) for one in (k, of.v))
    given = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=own.scale)
    return given.transpose(1, 2).flatten(2)


def neuron_outputs(
    model: Model, block: int, x: Float[Tensor, "prompts length d"]
) -> Float[Tensor, "prompts length neurons"]:
    own, y = weights.mlp(model, block), with_gain(weights.norm(model, "mlp", block), x)
    module = model.blocks[block].mlp
    if isinstance(module, FeatureMlp):
        return module.codes(y)

    def read(weight: Tensor, bias: Tensor | None) -> Tensor:
        return y @ weight if bias is None else y @ weight + bias

    up = read(own.up, own.up_bias)
    act = module.act if own.gate is None else module.act_fn  # pyright: ignore[reportAttributeAccessIssue]
    return act(up) if own.gate is None else act(read(own.gate, own.gate_bias)) * up  # pyright: ignore[reportCallIssue]


def written_by_heads(
    model: Model, block: int, given: Float[Tensor, "*prompts length columns"]
) -> Float[Tensor, "*prompts length d"]:
    """What they write, without the bias."""
    return given @ weights.attention(model, block).o.flatten(0, 1)


def written_by_neurons(
    model: Model, block: int, given: Float[Tensor, "*prompts length neurons"]
) -> Float[Tensor, "*prompts length d"]:
    return given @ weights.mlp(model, block).down
