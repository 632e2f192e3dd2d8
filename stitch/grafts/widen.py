"""A trained model with room for more: new channels, heads and neurons, with which it computes what it did.

New channels hold nothing, new heads and neurons write nothing. Norms see more channels, so their gains make up for that; under
LayerNorm all that is written is centred first, which it never sees the difference of.
"""

import copy
import math
from dataclasses import replace

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig

from stitch.circuits import weights
from stitch.grafts.room import Room
from stitch.models import Model


@torch.no_grad()
def widened(model: Model, *, channels: int, groups: int, neurons: int) -> tuple[Model, Room]:
    """`model` with at least so many more channels, and in every block key heads (each with as many query heads as the others) and
    neurons; and the room that this is. Untied, with biases where the family can have them."""
    own = weights.attention(model, 0)
    heads, own_groups, size = own.q.shape[1], own.k.shape[1], own.q.shape[2]
    width, inner = model.width, weights.mlp(model, 0).up.shape[1]
    centred = weights.norm(model, "final").centred
    config = _wider(model.config, width + channels + centred, heads, own_groups, size, groups, inner + neurons)
    net = AutoModelForCausalLM.from_config(config, dtype=model.dtype).to(model.device).eval()
    for parameter in net.parameters():
        parameter.zero_()
    wide = replace(model, net=net)
    total = wide.width
    shrink = (width / total) ** 0.5

    def centre(rows: Tensor) -> Tensor:
        return rows - rows.mean(-1, keepdim=True) if centred else rows

    wide.embedding.weight[:, :width] = centre(model.embedding.weight)
    old_positions, new_positions = weights.positions(model), weights.positions(wide)
    if old_positions is not None and new_positions is not None:
        new_positions[:, :width] = centre(old_positions)
    spots = [(stage, block) for block in range(model.depth) for stage in ("attention", "mlp")] + [("final", 0)]
    for spot in spots:
        old, new = weights.norm(model, *spot), weights.norm(wide, *spot)
        new.gain.fill_(1.0)
        new.gain[:width] = shrink * old.gain
        if old.bias is not None and new.bias is not None:
            new.bias[:width] = old.bias
    for block in range(model.depth):
        old, new = weights.attention(model, block), weights.attention(wide, block)
        for name, count in (("q", heads), ("k", own_groups), ("v", own_groups)):
            getattr(new, name)[:width, :count] = getattr(old, name)
            if (bias := getattr(old, f"{name}_bias")) is not None:
                getattr(new, f"{name}_bias")[:count] = bias
        new.o[:heads, :, :width] = centre(old.o)
        old, new = weights.mlp(model, block), weights.mlp(wide, block)
        for name in ("gate", "up"):
            if (weight := getattr(old, name)) is not None:
                getattr(new, name)[:width, :inner] = weight
                if (bias := getattr(old, f"{name}_bias")) is not None:
                    getattr(new, f"{name}_bias")[:inner] = bias
        new.down[:inner, :width] = centre(old.down)
        for part in (weights.attention, weights.mlp):
            old_bias, new_bias = (
                getattr(part(one, block), "o_bias" if part is weights.attention else "down_bias")
                for one in (model, wide)
            )
            if old_bias is not None:
                new_bias[:width] = centre(old_bias)
    weights.unembedding(wide)[:width] = weights.unembedding(model)
    blocks = range(model.depth)
    room = Room(total, centred, model.name, width, dict.fromkeys(blocks, own_groups), dict.fromkeys(blocks, inner))
    return wide, room


def _wider(
    config: PreTrainedConfig, width: int, heads: int, own_groups: int, size: int, groups: int, inner: int
) -> PreTrainedConfig:
    wide = copy.deepcopy(config)
    wide.tie_word_embeddings = False
    before = config.hidden_size
    if config.model_type == "gpt2":  # the width is that of its heads together
        count = max(math.ceil(width / size), heads + groups)
        wide.n_head, wide.n_embd, wide.n_inner = count, count * size, inner
        wide.layer_norm_epsilon *= before / wide.n_embd
        return wide
    wide.num_key_value_heads = own_groups + groups
    wide.num_attention_heads = heads // own_groups * wide.num_key_value_heads
    wide.head_dim, wide.intermediate_size = size, inner
    wide.hidden_size = math.ceil(width / wide.num_attention_heads) * wide.num_attention_heads
    wide.rms_norm_eps *= before / wide.hidden_size
    if config.model_type == "llama":
        wide.attention_bias = wide.mlp_bias = True
    return wide
