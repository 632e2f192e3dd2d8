"""Gated neurons of a host without biases that are together nearly 1 for every token, and so write a constant.

They read a constant lane, which norms make longer for some tokens than for others: it is r, 1 on average. A neuron is
r · SiLU(slope · r); a sum of few of them is far steadier around r = 1 than one, which is r².
"""

import torch
from jaxtyping import Float
from torch import Tensor

from stitch.grafts.allocation import FreeSpace
from stitch.regression.weighted import weighted_ridge

SLOPES = (20.0, 2.0, -2.0, -6.0)
RIDGE = 1e-5


def take(space: FreeSpace, block: int, neurons: int, most: int) -> range:
    """At most so many of a block's neurons as are free, at least one. Raises UsageError when none is."""
    count = max(min(most, neurons - space.neurons.get(block, 0)), 1)
    first = space.take_neurons(block, count, neurons)
    return range(first, first + count)


def slopes(count: int) -> Float[Tensor, " count"]:
    return torch.tensor(SLOPES[:count], dtype=torch.float64)


def sum_to_one(lengths: Float[Tensor, " tokens"], count: int) -> Float[Tensor, " count"]:
    """Weights with which neurons of the first slopes add up to 1 at these lengths r, by ridge regression."""
    lengths = lengths.double()[:, None]
    found = lengths * torch.nn.functional.silu(lengths * slopes(count))
    scale = found.norm(dim=0)
    return weighted_ridge(found / scale, torch.ones_like(lengths), RIDGE)[:, 0] / scale
