"""Measured attention of compiled checkpoints: the share on tokens other than the target, or the distance to a soft pattern."""

from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from stitch.synthesis import checkpoint
from stitch.synthesis.blueprint import Blueprint, Select
from stitch.synthesis.build import heads_of
from stitch.synthesis.patterns.factorise import differences
from stitch.synthesis.rope_heads import plane_head

DTYPES = (("fp32", torch.float32), ("bf16", torch.bfloat16))


def selection(folder: Path, blueprint: Blueprint, arch: str) -> dict[str, dict[str, float]]:
    """How sharply heads by position select their target, by dtype, over all positions of a full context of random tokens.

    `off_mass` is the largest share of attention on other tokens. `logit_gap` is the smallest difference between the target's
    score and the highest other score (absent without such heads).
    """
    found: dict[str, dict[str, float]] = {"off_mass": {}, "logit_gap": {}}
    positions = torch.arange(blueprint.length)
    for name, maps in _maps(folder, blueprint):
        found["off_mass"][name] = 0.0
        for block, heads in enumerate(heads_of(blueprint, arch)):
            for number, head in enumerate(heads):
                if not isinstance(head, Select):
                    continue
                attention = maps[block][0, number].float()
                on_target = attention[positions, head.target]
                attention[positions, head.target] = 0.0
                found["off_mass"][name] = max(found["off_mass"][name], float(attention.sum(1).max()))
                gap = float((on_target / attention.max(1).values)[1:].log().min())  # the first token sees no other
                found["logit_gap"][name] = min(found["logit_gap"].get(name, gap), gap)
    return found


def safe_context(blueprint: Blueprint, arch: str) -> int:
    """Calculated number of tokens over which heads by position select correctly, at most four times the compiled context.

    Learned positions end with the compiled context; RoPE does not.
    """
    if arch != "llama":
        return blueprint.length
    limit = 4 * blueprint.length
    offsets = {head.offset for block in blueprint.blocks for head in block.heads if isinstance(head, Select)}
    return min(
        (plane_head(offset, blueprint.length).reach(limit) for offset in offsets if offset is not None), default=limit
    )


def apart(folder: Path, blueprint: Blueprint, pattern: Float[Tensor, "length length"]) -> dict[str, dict[str, float]]:
    """Difference between the only head's attention and the pattern, by dtype (see `differences`)."""
    return {name: differences(pattern, maps[0][0, 0].double()) for name, maps in _maps(folder, blueprint)}


def _maps(folder: Path, blueprint: Blueprint) -> Iterator[tuple[str, tuple[Tensor, ...]]]:
    """For every dtype, the attention [1, heads, length, length] of every block on random tokens."""
    ids = torch.randint(1, len(blueprint.tokens), (1, blueprint.length), generator=torch.Generator().manual_seed(0))
    ids[0, 0] = 0
    for name, dtype in DTYPES:
        with torch.inference_mode():
            net = checkpoint.load(folder, dtype, "eager")
            yield name, net(ids, use_cache=False, output_attentions=True).attentions
