"""Ridge regression of many targets on one set of inputs, without a bias, with the strength that held-out positions choose."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

STRENGTHS = torch.logspace(-6, 3, 19, dtype=torch.float64)  # relative to the mean square of an input column


@dataclass
class Products:
    """HᵀH, HᵀR and Σ R² over positions, for inputs H and targets R. Sums are float64, the products of some positions float32."""

    inputs: Float[Tensor, "d d"]
    cross: Float[Tensor, "d targets"]
    squares: float = 0.0
    count: int = 0

    @classmethod
    def empty(cls, d: int, targets: int) -> "Products":
        return cls(torch.zeros(d, d, dtype=torch.float64), torch.zeros(d, targets, dtype=torch.float64))

    def add(self, inputs: Float[Tensor, "positions d"], targets: Float[Tensor, "positions targets"]) -> None:
        self.cross += (inputs.float().T @ targets.float()).cpu()
        self.squares += float(targets.square().sum(1).double().sum())
        inputs = inputs.double().cpu()
        self.inputs += inputs.T @ inputs
        self.count += len(inputs)


def ridge(fit: Products, held_out: Products) -> tuple[Float[Tensor, "d targets"], float]:
    """W that minimises Σ ‖R − H W‖² + λ ‖W‖², and the share of R's squares that it leaves on held-out positions.

    λ is the one with the least error there. Source: Hoerl & Kennard 1970, Technometrics 12.
    With HᵀH = V diag(v) Vᵀ and Z = VᵀHᵀR, W = V diag(w) Z where w = 1 / (v + λ). So the held-out error of every λ follows from
    ZZᵀ and from the products of Z with Vᵀ(held-out HᵀR), which are formed once.
    """
    values, vectors = torch.linalg.eigh(fit.inputs)
    turned = vectors.T @ fit.cross
    along = (turned * (vectors.T @ held_out.cross)).sum(1)
    across = (turned @ turned.T) * (vectors.T @ held_out.inputs @ vectors)
    scale = fit.inputs.diagonal().mean()
    best, least = torch.zeros_like(values), held_out.squares
    for strength in STRENGTHS:
        shrunken = 1 / (values.clamp_min(0) + strength * scale)
        error = held_out.squares - 2 * float(shrunken @ along) + float(shrunken @ across @ shrunken)
        if error < least:
            best, least = shrunken, error
    return vectors @ (best[:, None] * turned), least / max(held_out.squares, 1e-300)
