"""The normal equations of ridge regression with one input too wide to factor, by preconditioned conjugate gradients."""

# pyright: reportCallIssue=false
# (scipy.sparse carries no types)

import functools
import operator
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor

from stitch.regression.moments import Moments
from stitch.regression.sparse_gram import SparseGram

PRECISION = 1e-3  # relative residual: held-out errors then agree with exact ones to a few 10⁻⁴
ITERATIONS = 100  # at most; slower components are those that a stronger λ would damp


class ConjugateGradients:
    """Like `NormalEquations`, for the case that the products of one of several `inputs` are a `SparseGram`.

    The other inputs are eliminated exactly: conjugate gradients solve only the Schur complement of the wide input, with its
    diagonal as preconditioner, starting from the solution for the last λ.
    Source: Hestenes & Stiefel 1952; Golub & Van Loan, Matrix Computations, §11.5.
    """

    def __init__(self, moments: Moments, inputs: tuple[str, ...], scales: dict[str, Tensor]):
        self._moments, self._inputs, self._scales = moments, inputs, scales
        (self._wide,) = [name for name in inputs if isinstance(moments.stored(name, name), SparseGram)]
        self._rest = [name for name in inputs if name != self._wide]
        self._widths = {name: len(moments.sums[name]) for name in inputs}
        variance = moments.squares[self._wide] / moments.count - moments.means[self._wide] ** 2
        self._variance = variance[:, None] / scales[self._wide] ** 2
        self._narrow = torch.cat(
            [torch.cat([self._covariance(row, col) for col in self._rest], 1) for row in self._rest]
        )
        self._last: np.ndarray | None = None

    def solve(self, cross: Float[Tensor, "n out"], strengths: Float[Tensor, " n"]) -> Float[Tensor, "n out"] | None:
        """(G + diag(strengths))⁻¹ cross; None where the matrix of the narrow inputs is not positive definite after rounding."""
        cross_of = self._by_input(cross)
        strength_of = self._by_input(strengths[:, None])
        cross_rest = torch.cat([cross_of[name] for name in self._rest])
        ridge_rest = torch.cat([strength_of[name] for name in self._rest])
        factor, failed = torch.linalg.cholesky_ex(self._narrow + torch.diag(ridge_rest[:, 0]))
        if failed:
            return None
        right = cross_of[self._wide] - self._from_rest(torch.cholesky_solve(cross_rest, factor))
        weight = self._solve_wide(right, strength_of[self._wide], factor)
        rest = torch.cholesky_solve(cross_rest - self._to_rest(weight), factor)
        parts = rest.split([self._widths[name] for name in self._rest])
        solution = {self._wide: weight, **dict(zip(self._rest, parts, strict=True))}
        return torch.cat([solution[name] for name in self._inputs])

    def _solve_wide(
        self,
        right: Float[Tensor, "wide out"],
        strength: Float[Tensor, "wide 1"],
        factor: Float[Tensor, "narrow narrow"],
    ) -> Float[Tensor, "wide out"]:
        """The wide input's weights, by conjugate gradients; `factor` is the Cholesky factor of the narrow inputs' matrix."""

        def schur_times(weight: Tensor) -> Tensor:
            from_rest = self._from_rest(torch.cholesky_solve(self._to_rest(weight), factor))
            return self._times(self._wide, self._wide, weight) + strength * weight - from_rest

        self._last, _ = cg(
            _flat(schur_times, right.shape),
            right.flatten().numpy(),
            x0=self._last,
            rtol=PRECISION,
            maxiter=ITERATIONS,
            M=_flat(lambda residual: residual / (self._variance + strength), right.shape),
        )
        return torch.from_numpy(self._last).view_as(right)

    def _by_input(self, rows: Float[Tensor, "n k"]) -> dict[str, Float[Tensor, "_ k"]]:
        return dict(zip(self._inputs, rows.split(list(self._widths.values())), strict=True))

    def _covariance(self, row: str, column: str) -> Tensor:
        return self._moments.covariance(row, column) / (self._scales[row] * self._scales[column])

    def _times(self, row: str, column: str, weight: Tensor) -> Tensor:
        return self._moments.covariance_times(row, column, weight) / (self._scales[row] * self._scales[column])

    def _to_rest(self, weight: Float[Tensor, "wide out"]) -> Float[Tensor, "narrow out"]:
        return torch.cat([self._times(name, self._wide, weight) for name in self._rest])

    def _from_rest(self, weights: Float[Tensor, "narrow out"]) -> Float[Tensor, "wide out"]:
        parts = zip(self._rest, weights.split([self._widths[name] for name in self._rest]), strict=True)
        return functools.reduce(operator.add, (self._times(self._wide, name, part) for name, part in parts))


def _flat(function: Callable[[Tensor], Tensor], shape: torch.Size) -> LinearOperator:
    """A linear function of matrices in the form scipy needs: a function of the vector of all entries."""

    def of_entries(entries: np.ndarray) -> np.ndarray:
        return function(torch.from_numpy(entries).view(shape)).flatten().numpy()

    return LinearOperator((shape.numel(), shape.numel()), matvec=of_entries, dtype=np.float64)
