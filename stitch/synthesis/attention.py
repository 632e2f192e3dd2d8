"""How much of their attention heads give to tokens that they are not for: measured at every position of a full context."""

from pathlib import Path

import torch

from stitch.synthesis import checkpoint
from stitch.synthesis.blueprint import Blueprint, Select
from stitch.synthesis.build import heads_of


@torch.inference_mode()
def off_mass(folder: Path, blueprint: Blueprint, arch: str) -> dict[str, float]:
    """The most that any head by position gives elsewhere at any position, by dtype, on random tokens."""
    found = {}
    ids = torch.randint(1, len(blueprint.tokens), (1, blueprint.length), generator=torch.Generator().manual_seed(0))
    ids[0, 0] = 0
    places = heads_of(blueprint, arch)
    rows = torch.arange(blueprint.length)
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        net = checkpoint.load(folder, dtype, "eager")
        worst = 0.0
        maps = net(ids, use_cache=False, output_attentions=True).attentions
        for block, heads in enumerate(places):
            for number, head in enumerate(heads):
                if isinstance(head, Select):
                    attention = maps[block][0, number].float()
                    attention[rows, head.target] = 0.0
                    worst = max(worst, float(attention.sum(1).max()))
        found[name] = worst
    return found
