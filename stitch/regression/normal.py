"""The normal equations of ridge regression, solved for several λ in the memory of one matrix."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from stitch.regression.moments import Moments


class NormalEquations:
    """Solves (G + diag λ) w = c for several λ. G holds the covariances of `inputs`, each divided by its two inputs' scales.

    One [n, n] float64 matrix is allocated, 2.1 GB for 16,384 columns. For every λ, G is written into it and factored in place.
    """

    def __init__(self, moments: Moments, inputs: tuple[str, ...], scales: dict[str, Tensor]):
        ends = np.cumsum([0, *(len(moments.sums[name]) for name in inputs)])
        columns = {name: slice(*ends[number : number + 2]) for number, name in enumerate(inputs)}
        self._matrix = torch.empty(int(ends[-1]), int(ends[-1]), dtype=torch.float64)
        self._upper = [
            _Block(
                self._matrix[columns[first], columns[second]],
                moments.product(first, second),
                moments.count * (scales[first] * scales[second]),
                moments.means[first] / (scales[first] * scales[second]),
                moments.means[second],
            )
            for number, first in enumerate(inputs)
            for second in inputs[number:]
        ]

    def solve(self, cross: Float[Tensor, "n out"], strengths: Float[Tensor, " n"]) -> Float[Tensor, "n out"] | None:
        """(G + diag(strengths))⁻¹ cross; None where the matrix is not positive definite after rounding."""
        self._fill_upper()
        self._matrix.diagonal().add_(strengths)
        # LAPACK stores matrices by column, so it can factor the transpose in place. It reads the lower triangle only.
        lower = self._matrix.mT
        _, failed = torch.linalg.cholesky_ex(lower, out=(lower, torch.zeros((), dtype=torch.int32)))
        if failed:
            return None
        # `cholesky_solve` would copy the factor.
        half = torch.linalg.solve_triangular(lower, cross, upper=False)
        return torch.linalg.solve_triangular(lower.mT, half, upper=True)

    def _fill_upper(self) -> None:
        for block in self._upper:
            torch.div(block.products, block.divisor, out=block.place).addr_(block.rows, block.columns, alpha=-1)


@dataclass(frozen=True)
class _Block:
    """A block of the matrix, and the products and means from which its covariances are computed."""

    place: Float[Tensor, "u v"]
    products: Float[Tensor, "u v"]
    divisor: Float[Tensor, ""]
    rows: Float[Tensor, " u"]
    columns: Float[Tensor, " v"]
