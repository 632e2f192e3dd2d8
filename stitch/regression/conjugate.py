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

PRECISION = 1e-3  # of the residual: errors on held-out tokens agree with exact ones to a few 10⁻⁴
ITERATIONS = 100  # at most: what is not found by then is what a stronger λ would have damped


class ConjugateGradients:
    """As `NormalEquations`, for several λ, where the covariances of one of several `inputs` are a `SparseGram`.

    The other inputs are eliminated exactly, so that conjugate gradients see the wide one alone (its Schur complement), with
    its diagonal as preconditioner. A solution starts from that of the last λ.
    Source: Hestenes & Stiefel 1952; Golub & Van Loan, Matrix Computations, §11.5.
    """

    def __init__(self, moments: Moments, inputs: tuple[str, ...], scales: dict[str, Tensor]):
        self._moments, self._inputs, self._scales = moments, inputs, scales
        (self._wide,) = [name for name in inputs if isinstance(moments.found(name, name), SparseGram)]
        self._rest = [name for name in inputs if name != self._wide]
        self._widths = {name: len(moments.sums[name]) for name in inputs}
        variance = moments.squares[self._wide] / moments.count - moments.means[self._wide] ** 2
        self._variance = variance[:, None] / scales[self._wide] ** 2
        self._narrow = torch.cat(
            [torch.cat([self._covariance(row, col) for col in self._rest], 1) for row in self._rest]
        )
        self._last: np.ndarray | None = None

    def solve(self, cross: Float[Tensor, "n out"], strengths: Float[Tensor, " n"]) -> Float[Tensor, "n out"] | None:
        """(G + diag(strengths))⁻¹ cross; None where rounding has left no positive definite matrix of the narrow inputs."""
        of = dict(zip(self._inputs, cross.split(list(self._widths.values())), strict=True))
        strength = dict(zip(self._inputs, strengths[:, None].split(list(self._widths.values())), strict=True))
        of_rest, own = torch.cat([of[name] for name in self._rest]), strength[self._wide]
        ridge = torch.cat([strength[name] for name in self._rest])
        factor, failed = torch.linalg.cholesky_ex(self._narrow + torch.diag(ridge[:, 0]))
        if failed:
            return None

        def product(weight: Tensor) -> Tensor:
            from_rest = self._from_rest(torch.cholesky_solve(self._to_rest(weight), factor))
            return self._times(self._wide, self._wide, weight) + own * weight - from_rest

        right = of[self._wide] - self._from_rest(torch.cholesky_solve(of_rest, factor))
        self._last, _ = cg(
            _flat(product, right.shape),
            right.flatten().numpy(),
            x0=self._last,
            rtol=PRECISION,
            maxiter=ITERATIONS,
            M=_flat(lambda residual: residual / (self._variance + own), right.shape),
        )
        weight = torch.from_numpy(self._last).view_as(right)
        rest = torch.cholesky_solve(of_rest - self._to_rest(weight), factor)
        parts = rest.split([self._widths[name] for name in self._rest])
        found = {self._wide: weight, **dict(zip(self._rest, parts, strict=True))}
        return torch.cat([found[name] for name in self._inputs])

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
    """A linear function of matrices as scipy wants it: of all their entries in a row."""

    def of_entries(entries: np.ndarray) -> np.ndarray:
        return function(torch.from_numpy(entries).view(shape)).flatten().numpy()

    return LinearOperator((shape.numel(), shape.numel()), matvec=of_entries, dtype=np.float64)
