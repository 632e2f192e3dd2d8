"""Ridge regression of many targets on one set of inputs, without a bias, with the strength that held-out positions choose."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

STRENGTHS = torch.logspace(-6, 3, 19, dtype=torch.float64)  # relative to the mean square of an input column


@dataclass
class Products:
    """HᵀH, HᵀR and Σ R² over positions, for inputs H and targets R, in float64."""

    inputs: Float[Tensor, "d d"]
    cross: Float[Tensor, "d targets"]
    squares: float = 0.0
    count: int = 0

    @classmethod
    def empty(cls, d: int, targets: int) -> "Products":
        return cls(torch.zeros(d, d, dtype=torch.float64), torch.zeros(d, targets, dtype=torch.float64))

    def add(self, inputs: Float[Tensor, "positions d"], targets: Float[Tensor, "positions targets"]) -> None:
        inputs, targets = inputs.double().cpu(), targets.double().cpu()
        self.inputs += inputs.T @ inputs
        self.cross += inputs.T @ targets
        self.squares += float(targets.square().sum())
        self.count += len(inputs)

    def error(self, weights: Float[Tensor, "d targets"]) -> float:
        """Σ (R − H W)²."""
        fitted = ((self.inputs @ weights) * weights).sum() - 2 * (weights * self.cross).sum()
        return self.squares + float(fitted)


def ridge(fit: Products, held_out: Products) -> tuple[Float[Tensor, "d targets"], float]:
    """W that minimises Σ ‖R − H W‖² + λ ‖W‖², and the share of R's squares that it leaves on held-out positions.

    λ is the one with the least error there. Source: Hoerl & Kennard 1970, Technometrics 12.
    """
    values, vectors = torch.linalg.eigh(fit.inputs)
    turned = vectors.T @ fit.cross
    scale = fit.inputs.diagonal().mean()
    best, least = torch.zeros_like(fit.cross), held_out.squares
    for strength in STRENGTHS:
        weights = vectors @ (turned / (values.clamp_min(0) + strength * scale)[:, None])
        if (error := held_out.error(weights)) < least:
            best, least = weights, error
    return best, least / max(held_out.squares, 1e-300)
