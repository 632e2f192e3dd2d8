"""Where the parts of a blueprint are in a model: its width, heads, neurons and auxiliary channels."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Int64
from torch import Tensor

from stitch.synthesis.blueprint import Blueprint, LookUp, Select, bits_for
from stitch.synthesis.rope_heads import HEAD

Heads = list[Select | LookUp]


@dataclass(frozen=True)
class Layout:
    """Sizes of the model, and its channels beyond those of the blueprint.

    heads     of every block, as numbered in the model; each copies at most `head_size` channels.
    first     Llama: a channel that is 1 at the first token. `later`: one that is 1 at all other tokens.
    absorber  GPT-2: the channel that holds minus the sum of all others, so that LayerNorm's mean is 0.
    codes     GPT-2: pairs (targets, first channel of their position codes); the first pair is the positions themselves.
    """

    width: int
    heads: list[Heads]
    head_size: int
    neurons: int
    first: int | None = None
    later: int | None = None
    absorber: int | None = None
    codes: tuple[tuple[Int64[Tensor, " length"], int], ...] = ()

    @property
    def heads_per_block(self) -> int:
        return _most(self.heads)


def layout_of(blueprint: Blueprint, arch: str) -> Layout:
    return _llama(blueprint) if arch == "llama" else _gpt2(blueprint)


def _llama(blueprint: Blueprint) -> Layout:
    d = blueprint.embedding.shape[1]
    heads = [_split(block.heads, HEAD) for block in blueprint.blocks]
    width = _rounded_up(d + 2, _most(heads))
    return Layout(width, heads, HEAD, _most_neurons(blueprint), first=d, later=d + 1)


def _gpt2(blueprint: Blueprint) -> Layout:
    d, bits = blueprint.embedding.shape[1], bits_for(blueprint.length)
    targets = _distinct_targets(blueprint)
    ranks = [head.query.shape[1] for block in blueprint.blocks for head in block.heads if isinstance(head, LookUp)]
    size = _rounded_up(max([bits, *ranks]), 2)  # even, as head sizes usually are
    heads = [_split(block.heads, size) for block in blueprint.blocks]
    count = _most(heads)
    codes = tuple((target, d + 1 + 2 * bits * number) for number, target in enumerate(targets))
    used = d + 1 + 2 * bits * len(targets)
    size = max(size, _rounded_up(-(-used // count), 2))
    return Layout(count * size, heads, size, _most_neurons(blueprint), absorber=d, codes=codes)


def _distinct_targets(blueprint: Blueprint) -> list[Int64[Tensor, " length"]]:
    """Every position itself, and the targets of heads by position, each once."""
    found: list[Int64[Tensor, " length"]] = [torch.arange(blueprint.length)]
    for block in blueprint.blocks:
        for head in block.heads:
            if isinstance(head, Select) and not any(torch.equal(head.target, other) for other in found):
                found.append(head.target)
    return found


def _split(heads: tuple[Select | LookUp, ...], size: int) -> Heads:
    """The same heads as several that each copy at most `size` channels."""
    parts = []
    for head in heads:
        for source, into in zip(head.source.split(size), head.into.split(size), strict=True):
            parts.append(replace(head, source=source, into=into))
    return parts


def _most(heads: list[Heads]) -> int:
    return max(max(map(len, heads)), 1)


def _most_neurons(blueprint: Blueprint) -> int:
    return max([len(block.neurons.write) for block in blueprint.blocks if block.neurons is not None] or [1])


def _rounded_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
