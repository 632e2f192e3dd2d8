"""Tolerances between two ways to compute the same, from the dtype, the number of operations and the conditioning."""

import torch
from torch import Tensor

from stitch.models.model import Model


def rounding(dtype: torch.dtype, *, terms: int = 1, condition: float = 1.0) -> float:
    """The relative error, in norm, that rounding leaves in a result.

    `terms` operations round at random one after another, so their errors add up like the steps of a random walk.
    `condition` is the factor by which a relative change of the input grows in the result, such as a matrix's condition
    number when it is solved with.
    """
    return torch.finfo(dtype).eps * condition * max(terms, 1) ** 0.5


def of_a_pass(model: Model, condition: float = 1.0) -> float:
    """For a model's logits. Every block has four consecutive sums of products: into and out of attention and the
    MLP.
    """
    return rounding(model.dtype, terms=4 * model.depth * model.width, condition=condition)


def apart(found: Tensor, wanted: Tensor) -> float:
    """The relative distance, in norm."""
    found, wanted = found.detach().double(), wanted.detach().double()
    return float((found - wanted).norm() / wanted.norm())
