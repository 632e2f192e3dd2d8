"""What a component of another place reads: its own stream, as far as it follows linearly from the one that it finds there."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

RIDGE = 5e-2  # of the mean variance


@dataclass(frozen=True)
class ReadMap:
    """y ≈ x @ weight + shift, for two streams as norms make them; `missing` is the share of the variance of y that it leaves."""

    weight: Float[Tensor, "d d"]
    shift: Float[Tensor, " d"]
    missing: float

    @classmethod
    def fitted(cls, x: Float[Tensor, "*rows d"], y: Float[Tensor, "*rows d"], ridge: float = RIDGE) -> "ReadMap":
        """Least squares, with the variance of y; where `x` varies little, y is taken to be x."""
        x, y = x.flatten(0, -2).double(), y.flatten(0, -2).double()
        mean_x, mean_y = x.mean(0), y.mean(0)
        x, y = x - mean_x, y - mean_y
        square, eye = x.T @ x, torch.eye(x.shape[1], dtype=torch.float64, device=x.device)
        weight = eye + torch.linalg.solve(square + ridge * square.diagonal().mean() * eye, x.T @ (y - x))
        found = x @ weight
        missing = float((y - found).square().sum() / y.square().sum())
        # What is predicted varies less than what is: scores would be too small.
        weight = weight * (y.square().sum() / found.square().sum()).sqrt()
        return cls(weight.float(), (mean_y - mean_x @ weight).float(), missing)

    def of(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        return x @ self.weight.to(x) + self.shift.to(x)
