"""The normal equations of ridge regression, solved for many λ in the memory of one matrix."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from stitch.regression.moments import Moments


class NormalEquations:
    """(G + diag λ) w = c for several λ; G holds the covariances of `inputs`, each block divided by its scale.

    One [n, n] float64 matrix is kept, 2.1 GB for 16,384 columns: every λ writes G into it anew and factors it in place.
    """

    def __init__(self, moments: Moments, inputs: tuple[str, ...], scales: dict[str, Tensor]):
        ends = np.cumsum([0, *(len(moments.sums[name]) for name in inputs)])
        columns = {name: slice(*ends[place : place + 2]) for place, name in enumerate(inputs)}
        self._matrix = torch.empty(int(ends[-1]), int(ends[-1]), dtype=torch.float64)
        self._upper = [
            _Block(
                self._matrix[columns[first], columns[second]],
                moments.product(first, second),
                moments.count * (scales[first] * scales[second]),
                moments.means[first] / (scales[first] * scales[second]),
                moments.means[second],
            )
            for place, first in enumerate(inputs)
            for second in inputs[place:]
        ]

    def solve(self, cross: Float[Tensor, "n out"], strengths: Float[Tensor, " n"]) -> Float[Tensor, "n out"] | None:
        """(G + diag(strengths))⁻¹ cross; None where rounding has left no positive definite matrix to factor."""
        self._fill_upper()
        self._matrix.diagonal().add_(strengths)
        # LAPACK counts by columns, so the transpose is what it can factor where it lies; the lower triangle is read.
        lower = self._matrix.mT
        _, failed = torch.linalg.cholesky_ex(lower, out=(lower, torch.zeros((), dtype=torch.int32)))
        if failed:
            return None
        # Not `cholesky_solve`, which copies the factor.
        half = torch.linalg.solve_triangular(lower, cross, upper=False)
        return torch.linalg.solve_triangular(lower.mT, half, upper=True)

    def _fill_upper(self) -> None:
        for block in self._upper:
            torch.div(block.products, block.divisor, out=block.place).addr_(block.rows, block.columns, alpha=-1)


@dataclass(frozen=True)
class _Block:
    """A part of the matrix, and the products and means that its covariances are made of."""

    place: Float[Tensor, "u v"]
    products: Float[Tensor, "u v"]
    divisor: Float[Tensor, ""]
    rows: Float[Tensor, " u"]
    columns: Float[Tensor, " v"]
