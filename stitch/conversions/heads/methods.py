"""The methods that merge key heads, and the baselines and the null they are compared with."""

import torch

from stitch.conversions.heads import baselines, contraction
from stitch.conversions.heads.blocks import Method
from stitch.conversions.heads.contraction import SLOW
from stitch.conversions.heads.merge import Keys, Values
from stitch.conversions.heads.moments import HeadGroup
from stitch.conversions.heads.refine import error, refined

REFITTED = " + refit"


def methods(seed: int) -> dict[str, Method]:
    """All methods by row name, without and with refitted output weights."""
    generator = torch.Generator().manual_seed(seed)
    pairs = {
        "contraction": (closed_form, values),
        "least squares": (least_squares, values),
        "baseline:mean pooling": (_pooled, lambda of: baselines.pooled_values(of.old, of.output)),
        "baseline:first head": (_first, lambda of: baselines.first_values(of.old, of.output)),
        "baseline:rotate-mean": (_turned, lambda of: baselines.turned_values(of.values, of.output, of.head_of)),
        "null:random": (
            lambda of: baselines.random_keys(of.old, of.keys.size, of.head_of, generator),
            lambda of: baselines.random_values(of.old, of.output, generator),
        ),
    }
    found = {}
    for name, (keys, of_values) in pairs.items():
        found[name] = Method(keys, of_values, refit=False)
        found[name + REFITTED] = Method(keys, of_values, refit=True)
    return found


def closed_form(of: HeadGroup) -> Keys:
    return contraction.by_frequency(of.keys)


def least_squares(of: HeadGroup) -> Keys:
    """Alternating least squares, started from the closed form with the smallest error on the attention."""
    rows = of.rows()
    starts = [closed_form(of)]
    if of.keys.frequencies.any():
        starts.append(contraction.by_frequency(of.keys, slow=SLOW))
        starts.append(contraction.aligned(of.keys))
    return refined(min(starts, key=lambda keys: error(keys, rows)), rows)


def values(of: HeadGroup) -> Values:
    return contraction.contracted_values(of.values, of.output, of.head_of)


def _pooled(of: HeadGroup) -> Keys:
    return baselines.pooled_keys(of.old, of.keys.size, of.head_of)


def _first(of: HeadGroup) -> Keys:
    return baselines.first_keys(of.old, of.keys.size, of.head_of)


def _turned(of: HeadGroup) -> Keys:
    return baselines.turned_keys(of.keys.moment(), of.keys.size, of.head_of, rotary=bool(of.keys.frequencies.any()))
