"""A linear map from the stream that a component finds at a new place to the stream that it reads in its own model."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

RIDGE = 5e-2  # relative to the mean variance of the input


@dataclass(frozen=True)
class ReadMap:
    """y ≈ x @ weight + shift for two normalised streams; `missing` is the share of y's variance that the fit does not explain."""

    weight: Float[Tensor, "d d"]
    shift: Float[Tensor, " d"]
    missing: float

    @classmethod
    def fitted(cls, x: Float[Tensor, "*rows d"], y: Float[Tensor, "*rows d"], ridge: float = RIDGE) -> "ReadMap":
        """Ridge regression towards the identity, rescaled so that the prediction has the variance of `y`."""
        x, y = x.flatten(0, -2).double(), y.flatten(0, -2).double()
        mean_x, mean_y = x.mean(0), y.mean(0)
        x, y = x - mean_x, y - mean_y
        square, eye = x.T @ x, torch.eye(x.shape[1], dtype=torch.float64, device=x.device)
        weight = eye + torch.linalg.solve(square + ridge * square.diagonal().mean() * eye, x.T @ (y - x))
        predicted = x @ weight
        missing = float((y - predicted).square().sum() / y.square().sum())
        # A prediction varies less than its target, and attention scores would be too small.
        weight = weight * (y.square().sum() / predicted.square().sum()).sqrt()
        return cls(weight.float(), (mean_y - mean_x @ weight).float(), missing)

    def apply(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        return x @ self.weight.to(x) + self.shift.to(x)
