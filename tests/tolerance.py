"""How far two ways to compute the same may lie apart, from the dtype, the number of operations and the conditioning."""

import torch
from torch import Tensor

from stitch.models.model import Model


def rounding(dtype: torch.dtype, *, terms: int = 1, condition: float = 1.0) -> float:
    """The relative error, in norm, that rounding leaves in a result.

    `terms` operations one after another round at random: their errors add up like the steps of a random walk. `condition` is the
    factor by which a relative change of what is given grows in the result: a matrix's condition number where it is solved with.
    """
    return torch.finfo(dtype).eps * condition * max(terms, 1) ** 0.5


def of_a_pass(model: Model, condition: float = 1.0) -> float:
    """Of a model's logits: in every block four sums of products follow one another, into attention and MLP and out of them."""
    return rounding(model.dtype, terms=4 * model.depth * model.width, condition=condition)


def apart(found: Tensor, wanted: Tensor) -> float:
    """The relative distance, in norm."""
    found, wanted = found.detach().double(), wanted.detach().double()
    return float((found - wanted).norm() / wanted.norm())
