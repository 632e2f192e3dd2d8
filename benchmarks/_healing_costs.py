"""What the arms of `healing.py` cost in float32, from configurations and the numbers of parameters in its lines.

Nothing is fitted or run. What fitting decides is bounded from above: the composite's seam takes no more bytes than its limit
allows, and multiplies no more numbers than are trained in it; of own tables every row but those by token has a key.
"""

import torch
from _healing import REMOVED, SITES, WHOLE, A, B

from stitch.composite.costs import Cost, Costs
from stitch.config import Settings
from stitch.conversions.ngrams.memory import NgramShape
from stitch.models.loading import load
from stitch.models.model import Model
from stitch.models.sources import resolve

NUMBER, KEY = 4, 8  # bytes
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
    bounds = {
        "composite": composite(made, sizes["composite, seam only"]["trained"]),
        "own tables": tables(short, sizes["own tables"]["parameters"] - short.parameters, b),
    }
    return [
        {"benchmark": "healing", "cost_of": arm, "at_most": arm in bounds, **cost.to_dict()}
        for arm, cost in {**exact, **bounds}.items()
    ]


def composite(made: Costs, trained: int) -> Cost:
    """Both halves and a seam whose matrices, constants and scales are `trained` numbers; its other bytes are 8-bit codes."""
    halves = made.joined(*SITES, Cost())
    limit = int(halves.bytes * Settings(model_a=A, model_b=B, layer=SITES[0]).seam_bytes / 100)
    return halves + Cost(2.0 * trained, trained + limit - NUMBER * trained, limit, NUMBER * trained)


def tables(late: Cost, numbers: int, b: Model) -> Cost:
    """Blocks behind tables of `numbers` numbers, of which a token reads a row per table and two constants."""
    shape, rows = NgramShape(), numbers // b.width
    read = 1 + shape.skips + (shape.order - 1) + 2
    keyed = rows - (1 + shape.skips) * b.vocabulary
    return late + Cost(0.0, numbers, NUMBER * numbers + KEY * keyed, NUMBER * b.width * read)
