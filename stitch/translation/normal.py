"""The normal equations of ridge regression, solved for many λ in the memory of one matrix."""

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import get_lapack_funcs
from torch import Tensor

from stitch.translation.moments import Moments

STRIP = 1024  # rows copied at a time

potrf, potrs = get_lapack_funcs(("potrf", "potrs"), dtype=np.float64)


class NormalEquations:
    """(G + diag λ) w = c for several λ; G holds the covariances of `inputs`, each block divided by its scale.

    G lives in the upper triangle of one [n, n] float64 matrix; every Cholesky factor overwrites the lower triangle and the
    diagonal. 16,384 columns take 2.1 GB.
    """

    def __init__(self, moments: Moments, inputs: tuple[str, ...], scales: dict[str, Tensor]):
        widths = [len(moments.sums[name]) for name in inputs]
        ends = np.cumsum([0, *widths])
        self._matrix = torch.zeros(int(ends[-1]), int(ends[-1]), dtype=torch.float64)
        for row, first in enumerate(inputs):
            for column, second in list(enumerate(inputs))[row:]:
                block = self._matrix[ends[row] : ends[row + 1], ends[column] : ends[column + 1]]
                scale = scales[first] * scales[second]
                torch.div(moments.product(first, second), moments.count * scale, out=block)
                block.addr_(moments.mean(first) / scale, moments.mean(second), alpha=-1)
        self._diagonal = self._matrix.diagonal().clone()

    def solve(self, cross: Float[Tensor, "n out"], strengths: Float[Tensor, " n"]) -> Float[Tensor, "n out"] | None:
        """(G + diag(strengths))⁻¹ cross; None where rounding has left no positive definite matrix to factor."""
        size = len(self._matrix)
        for start in range(0, size, STRIP):
            end = min(start + STRIP, size)
            corner = self._matrix[start:end, start:end]
            corner.copy_(corner.triu() + corner.triu(1).T)
            self._matrix[end:, start:end] = self._matrix[start:end, end:].T
        self._matrix.diagonal().copy_(self._diagonal + strengths)
        # To LAPACK, which counts by columns, the lower triangle is the upper one. With `clean=0` the other stays as it is.
        factor, failed = potrf(self._matrix.T.numpy(), lower=0, overwrite_a=1, clean=0)
        if failed:
            return None
        solved, _ = potrs(factor, np.asfortranarray(cross.numpy()), lower=0)
        return torch.from_numpy(np.ascontiguousarray(solved))
