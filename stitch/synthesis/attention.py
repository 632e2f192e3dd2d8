"""What heads attend to, read back from disk: beside the token that they are for, or apart from a soft pattern."""

from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from stitch.synthesis import checkpoint
from stitch.synthesis.blueprint import Blueprint, Select
from stitch.synthesis.build import heads_of, plane_head
from stitch.synthesis.patterns.factorise import differences


def selection(folder: Path, blueprint: Blueprint, arch: str) -> dict[str, dict[str, float]]:
    """Of heads by position, at every place of a full context of random tokens, by dtype: the most attention that any gives to
    other tokens (`off_mass`), and the least by which its token's score is above theirs (`logit_gap`; none without such heads)."""
    found: dict[str, dict[str, float]] = {"off_mass": {}, "logit_gap": {}}
    rows = torch.arange(blueprint.length)
    for name, maps in _maps(folder, blueprint):
        found["off_mass"][name] = 0.0
        for block, heads in enumerate(heads_of(blueprint, arch)):
            for number, head in enumerate(heads):
                if isinstance(head, Select):
                    attention = maps[block][0, number].float()
                    right = attention[rows, head.target]
                    attention[rows, head.target] = 0.0
                    found["off_mass"][name] = max(found["off_mass"][name], float(attention.sum(1).max()))
                    gap = float((right / attention.max(1).values)[1:].log().min())  # the first token has no other
                    found["logit_gap"][name] = min(found["logit_gap"].get(name, gap), gap)
    return found


def safe_context(blueprint: Blueprint, arch: str) -> int:
    """Tokens over which heads by position hold, by calculation, up to four times the context that they were compiled for: learned
    positions end with it, RoPE's planes go on."""
    if arch != "llama":
        return blueprint.length
    limit = 4 * blueprint.length
    offsets = {head.offset for block in blueprint.blocks for head in block.heads if isinstance(head, Select)}
    return min(
        (plane_head(offset, blueprint.length).reach(limit) for offset in offsets if offset is not None), default=limit
    )


def apart(folder: Path, blueprint: Blueprint, pattern: Float[Tensor, "length length"]) -> dict[str, dict[str, float]]:
    """How far the only head's attention is from the pattern, by dtype: see `differences`."""
    return {name: differences(pattern, maps[0][0, 0].double()) for name, maps in _maps(folder, blueprint)}


def _maps(folder: Path, blueprint: Blueprint) -> Iterator[tuple[str, tuple[Tensor, ...]]]:
    ids = torch.randint(1, len(blueprint.tokens), (1, blueprint.length), generator=torch.Generator().manual_seed(0))
    ids[0, 0] = 0
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with torch.inference_mode():
            net = checkpoint.load(folder, dtype, "eager")
            yield name, net(ids, use_cache=False, output_attentions=True).attentions
