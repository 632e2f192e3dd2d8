"""The normal equations of ridge regression, solved for many λ in the memory of one matrix."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from stitch.translation.moments import Moments


class NormalEquations:
    """(G + diag λ) w = c for several λ; G holds the covariances of `inputs`, each block divided by its scale.

    One [n, n] float64 matrix is kept, 2.1 GB for 16,384 columns: every λ writes G into it anew and factors it in place.
    """

    def __init__(self, moments: Moments, inputs: tuple[str, ...], scales: dict[str, Tensor]):
        self._moments, self._inputs, self._scales = moments, inputs, scales
        self._ends = np.cumsum([0, *(len(moments.sums[name]) for name in inputs)])
        self._matrix = torch.empty(int(self._ends[-1]), int(self._ends[-1]), dtype=torch.float64)

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
        for row, first in enumerate(self._inputs):
            for column, second in list(enumerate(self._inputs))[row:]:
                rows, columns = (slice(self._ends[i], self._ends[i + 1]) for i in (row, column))
                block = self._matrix[rows, columns]
                scale = self._scales[first] * self._scales[second]
                torch.div(self._moments.product(first, second), self._moments.count * scale, out=block)
                block.addr_(self._moments.mean(first) / scale, self._moments.mean(second), alpha=-1)
