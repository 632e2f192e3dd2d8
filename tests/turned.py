"""A Llama that computes what another one does, in a rotated residual stream."""

from pathlib import Path

import torch

import tiny
from stitch.models.model import Model


def rotated_copy(a: Model, width: int, rotation: torch.Tensor) -> Model:
    """A Llama that computes exactly what `a` computes, in a residual stream rotated by `rotation` [width_a, width].

    Norm gains move into the weights that read the stream. RMSNorm then commutes with rotations, and with isometries
    into a wider stream up to the factor √(width_a / width), which moves into these weights as well.
    """
    config = {**tiny.SHAPES["llama"], "hidden_size": width, "head_dim": a.width // 4, "tie_word_embeddings": False}
    net = tiny.net("llama", **config)
    factor = (a.width / width) ** 0.5
    with torch.no_grad():
        net.model.embed_tokens.weight.copy_(a.net.model.embed_tokens.weight @ rotation)
        for mine, theirs in zip(net.model.layers, a.net.model.layers, strict=True):
            for norm, readers in (
                ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
                ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
            ):
                gain = theirs.get_submodule(norm).weight
                mine.get_submodule(norm).weight.fill_(1.0)
                for reader in readers:
                    read = theirs.get_submodule(reader).weight * gain
                    mine.get_submodule(reader).weight.copy_(factor * read @ rotation)
            for writer in ("self_attn.o_proj", "mlp.down_proj"):
                mine.get_submodule(writer).weight.copy_(rotation.T @ theirs.get_submodule(writer).weight)
        net.model.norm.weight.fill_(1.0)
        net.lm_head.weight.copy_(factor * (a.net.lm_head.weight * a.net.model.norm.weight) @ rotation)
    return Model("b", net, a.tokenizer, a.anatomy, Path("b"))
