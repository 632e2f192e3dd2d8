"""Ridge regression of many targets on one set of inputs, without a bias, with the strength that held-out positions choose."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

AT_ONCE = 2**14  # targets whose products are turned at a time: all of them would be several copies of a large head
STRENGTHS = torch.logspace(-6, 3, 19, dtype=torch.float64)  # relative to the mean square of an input column


@dataclass
class Products:
    """HᵀH, HᵀR and Σ R² over positions, for inputs H and targets R.

    HᵀR, which has a column per target, is float32 and lies where the targets do; the others are float64.
    """

    inputs: Float[Tensor, "d d"]
    cross: Float[Tensor, "d targets"]
    squares: float = 0.0
    count: int = 0

    @classmethod
    def empty(cls, d: int, targets: int, device: torch.device | str = "cpu") -> "Products":
        return cls(torch.zeros(d, d, dtype=torch.float64), torch.zeros(d, targets, device=device))

    def add(self, inputs: Float[Tensor, "positions d"], targets: Float[Tensor, "positions targets"]) -> None:
        self.cross.addmm_(inputs.to(self.cross).T, targets.to(self.cross))
        self.squares += float(targets.square().sum(1).double().sum())
        inputs = inputs.double().cpu()
        self.inputs += inputs.T @ inputs
        self.count += len(inputs)


def passes_of_ridge(products: Products) -> int:
    """In how many parts `ridge` goes through the targets, in both of its passes."""
    return 2 * -(-products.cross.shape[1] // AT_ONCE)


def ridge(
    fit: Products, held_out: Products, tick: Callable[[], None] = lambda: None
) -> tuple[Float[Tensor, "d targets"], float]:
    """W that minimises Σ ‖R − H W‖² + λ ‖W‖², and the share of R's squares that it leaves on held-out positions.

    λ is the one with the least error there. Source: Hoerl & Kennard 1970, Technometrics 12.
    With HᵀH = V diag(v) Vᵀ and Z = VᵀHᵀR, W = V diag(w) Z where w = 1 / (v + λ). So the held-out error of every λ follows from
    ZZᵀ and from the products of Z with Vᵀ(held-out HᵀR), which are formed once.
    `tick` is called after each of the parts that `passes_of_ridge` counts.
    """
    values, vectors = torch.linalg.eigh(fit.inputs)
    along, across = torch.zeros_like(values), torch.zeros_like(fit.inputs)
    for some, held in zip(fit.cross.split(AT_ONCE, 1), held_out.cross.split(AT_ONCE, 1), strict=True):
        turned = vectors.T @ some.double().cpu()
        along += (turned * (vectors.T @ held.double().cpu())).sum(1)
        across += turned @ turned.T
        tick()
    across *= vectors.T @ held_out.inputs @ vectors
    scale = fit.inputs.diagonal().mean()
    best, least = torch.zeros_like(values), held_out.squares
    for strength in STRENGTHS:
        shrunken = 1 / (values.clamp_min(0) + strength * scale)
        error = held_out.squares - 2 * float(shrunken @ along) + float(shrunken @ across @ shrunken)
        if error < least:
            best, least = shrunken, error
    inverse = (vectors * best) @ vectors.T
    parts = []
    for some in fit.cross.split(AT_ONCE, 1):
        parts.append((inverse @ some.double().cpu()).float().to(some.device))
        tick()
    return torch.cat(parts, 1), least / max(held_out.squares, 1e-300)
