"""Pico models for merging key heads: one whose heads can be merged without loss, and a conversion."""

import torch
from torch import Tensor

import tiny
from stitch.conversions.heads.blocks import Method, convert
from stitch.conversions.heads.methods import closed_form, values
from stitch.internals import weights
from stitch.internals.weights import Attention
from stitch.models.model import Model

OURS = Method(closed_form, values, refit=False)
KINDS = {"gpt2": {}, "llama": {}, "qwen2": {}, "mistral": {"sliding_window": None}}


def pico(family: str, **changes) -> Model:
    return tiny.model(family, **{**KINDS.get(family, {}), **changes})


def windows(count: int = 8, length: int = 24, seed: int = 0) -> Tensor:
    return tiny.ids(count, length, seed).int()


def all_in_one(model: Model, block: int, moments, context: int) -> tuple[tuple[int, ...], ...]:
    return (tuple(range(weights.attention(model, block).k.shape[1])),)


def converted(model: Model, method: Method, groups=all_in_one, **ids) -> list[Attention]:
    ids = ids or {"fit": windows(), "sweep": windows(seed=1)}
    return convert(model, groups, {"it": method}, ids, sample=8)["it"]


def logits(net, ids: Tensor) -> Tensor:
    return net(input_ids=ids.long(), use_cache=False).logits.detach()


def shared_behind_a_gauge(model: Model, seed: int = 0, *, scaled: bool = True) -> Model:
    """Every key head equals the first after a rotation (and scale) of each plane, every value head equals the first
    times a matrix.
    """
    generator = torch.Generator().manual_seed(seed)
    for block in range(model.depth):
        of = weights.attention(model, block)
        d = of.k.shape[2]
        for head in range(1, of.k.shape[1]):
            angle = 6.28 * torch.rand(d // 2, generator=generator)
            length = 0.5 + torch.rand(d // 2, generator=generator) if scaled else torch.ones(d // 2)
            mix = torch.randn(d, d, generator=generator)
            for key, value in ((of.k, of.v), (of.k_bias, of.v_bias)):
                if key is None or value is None:
                    continue
                first, second = key[..., 0, :].chunk(2, -1)
                cos, sin = length * angle.cos(), length * angle.sin()
                key[..., head, :] = torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
                value[..., head, :] = value[..., 0, :] @ mix
    return model
