"""The outputs of a block's heads and neurons for any given stream, so that blocks can be run in another order than the
model's."""

import torch
from jaxtyping import Float
from torch import Tensor

from stitch.internals import attend, weights
from stitch.internals.transcoders import FeatureMlp
from stitch.internals.weights import Norm
from stitch.models.model import Model


def with_gain(norm: Norm, read: Float[Tensor, "*prompts d"]) -> Float[Tensor, "*prompts d"]:
    """The output of a norm whose normalised input is `read`: times its gain, plus its bias."""
    return read * norm.gain if norm.bias is None else read * norm.gain + norm.bias


def head_outputs(
    model: Model, block: int, x: Float[Tensor, "prompts length d"]
) -> Float[Tensor, "prompts length columns"]:
    """The values that the block's heads attend to, side by side, for a normalised stream `x`; before the output projection."""
    attention, y = weights.attention(model, block), with_gain(weights.norm(model, "attention", block), x)
    heads, frequencies = attend.heads_of(attention, y), weights.frequencies(model)
    q, k = attend.rotated(heads.q, frequencies), attend.rotated(heads.k, frequencies)
    k, v = (each.repeat_interleave(attention.shared, 1) for each in (k, heads.v))
    outputs = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=attention.scale)
    return attend.stacked(outputs)


def neuron_outputs(
    model: Model, block: int, x: Float[Tensor, "prompts length d"]
) -> Float[Tensor, "prompts length neurons"]:
    """The activations of the block's neurons, or of the features in their place, for a normalised stream `x`."""
    mlp, y = weights.mlp(model, block), with_gain(weights.norm(model, "mlp", block), x)
    module = model.blocks[block].mlp
    if isinstance(module, FeatureMlp):
        return module.codes(y)

    def read(weight: Tensor, bias: Tensor | None) -> Tensor:
        return y @ weight if bias is None else y @ weight + bias

    up = read(mlp.up, mlp.up_bias)
    act = module.act if mlp.gate is None else module.act_fn  # pyright: ignore[reportAttributeAccessIssue]
    return act(up) if mlp.gate is None else act(read(mlp.gate, mlp.gate_bias)) * up  # pyright: ignore[reportCallIssue]


def written_by_heads(
    model: Model, block: int, outputs: Float[Tensor, "*prompts length columns"]
) -> Float[Tensor, "*prompts length d"]:
    """The output projection of `head_outputs`, without its bias."""
    return outputs @ weights.attention(model, block).o.flatten(0, 1)


def written_by_neurons(
    model: Model, block: int, outputs: Float[Tensor, "*prompts length neurons"]
) -> Float[Tensor, "*prompts length d"]:
    """The down projection of `neuron_outputs`, without its bias."""
    return outputs @ weights.mlp(model, block).down
