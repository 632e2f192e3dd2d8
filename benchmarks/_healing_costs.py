"""What the arms of `healing.py` cost in float32, from configurations and the numbers of parameters in its lines.

Nothing is fitted or run. What fitting decides is bounded from above: the composite's seam takes no more bytes than its limit
allows, own tables no more than the blocks that they replace, and neither multiplies more numbers than it has beside its codes.
"""

import torch
from _healing import REMOVED, SITES, WHOLE, A, B

from stitch.composite.costs import Cost, Costs
from stitch.config import Settings
from stitch.models.loading import load
from stitch.models.sources import resolve

NUMBER = 4  # bytes
CONTEXT = 256


def costs(lines: list[dict]) -> list[dict]:
    """One line per arm, `at_most` where it is a bound."""
    sizes = {line["arm"]: line for line in lines if "parameters" in line}
    a, b = (load(resolve(name).folder, dtype=torch.float32, name=name) for name in (A, B))
    made = Costs(a, b, CONTEXT)
    short = made.late(REMOVED)  # six blocks of B with embedding and head: the other arms have as many
    exact = {
        A: made.whole_source,
        B: made.whole_target,
        WHOLE: made.whole_target,
        "shortened": short,
        "random blocks": short,
        "fresh": short,
    }
    blocks, seam = made.whole_target.bytes - short.bytes, sizes["composite, seam only"]["trained"]
    halves = made.joined(*SITES, Cost())
    limit = int(halves.bytes * Settings(model_a=A, model_b=B, layer=SITES[0]).seam_bytes / 100)
    bounds = {
        "composite": packed(halves, limit, seam),
        "own tables": packed(short, blocks, sizes["own tables"]["parameters"] - short.parameters),
    }
    return [
        {"benchmark": "healing", "cost_of": arm, "at_most": arm in bounds, **cost.to_dict()}
        for arm, cost in {**exact, **bounds}.items()
    ]


def packed(kept: Cost, limit: int, numbers: int) -> Cost:
    """What is kept of models, and `limit` bytes of matrices, constants and scales, `numbers` in all, and of 8-bit codes."""
    return kept + Cost(2.0 * numbers, numbers + limit - NUMBER * numbers, limit, NUMBER * numbers)
