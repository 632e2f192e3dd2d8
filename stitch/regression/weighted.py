"""Weighted ridge regression on a few columns that are held as they are."""

import torch
from jaxtyping import Float
from torch import Tensor


def weighted_ridge(
    columns: Float[Tensor, "rows columns"],
    goal: Float[Tensor, "rows goals"],
    ridge: float,
    weights: Float[Tensor, " rows"] | float = 1.0,
) -> Float[Tensor, "columns goals"]:
    """The coefficients with the least weighted squared error plus `ridge` times their squares in units of the columns'."""
    square = (columns.T * weights) @ columns
    square += ridge * square.diagonal().mean() * torch.eye(len(square), dtype=square.dtype)
    return torch.linalg.solve(square, (columns.T * weights) @ goal)
