"""The normal equations of ridge regression with one input too wide to factor, by preconditioned conjugate gradients."""

import torch
from jaxtyping import Float
from torch import Tensor

from stitch.translation.moments import Moments
from stitch.translation.sparse_gram import SparseGram

PRECISION = (
    1e-3  # of the residual, in the preconditioner's norm: errors on held-out tokens agree with exact ones to a few 10⁻⁴
)
ITERATIONS = 100  # at most: what is not found by then is what a stronger λ would have damped


class ConjugateGradients:
    """As `NormalEquations`, for several λ, where the covariances of one of `inputs` are a `SparseGram`.

    The other inputs are eliminated exactly, so that conjugate gradients see the wide one alone (its Schur complement), with
    its diagonal as preconditioner and every column of the target on its own. A solution starts from that of the last λ.
    Source: Hestenes & Stiefel 1952; Golub & Van Loan, Matrix Computations, §11.5.
    """

    def __init__(self, moments: Moments, inputs: tuple[str, ...], scales: dict[str, Tensor]):
        self._moments, self._inputs, self._scales = moments, inputs, scales
        (self._wide,) = [name for name in inputs if isinstance(moments.found(name, name), SparseGram)]
        self._rest = [name for name in inputs if name != self._wide]
        self._widths = [len(moments.sums[name]) for name in inputs]
        variance = moments.squares[self._wide] / moments.count - moments.mean(self._wide) ** 2
        self._variance = variance / scales[self._wide] ** 2
        self._last: Tensor | None = None

    def solve(self, cross: Float[Tensor, "n out"], strengths: Float[Tensor, " n"]) -> Float[Tensor, "n out"] | None:
        """(G + diag(strengths))⁻¹ cross; None where rounding has left no positive definite matrix of the narrow inputs."""
        of = dict(zip(self._inputs, cross.split(self._widths), strict=True))
        strength = dict(zip(self._inputs, strengths.split(self._widths), strict=True))
        factor = None
        if self._rest:
            narrow = torch.cat([torch.cat([self._narrow(row, col) for col in self._rest], 1) for row in self._rest])
            narrow.diagonal().add_(torch.cat([strength[name] for name in self._rest]))
            factor, failed = torch.linalg.cholesky_ex(narrow)
            if failed:
                return None

        def eliminated(right: Tensor) -> Tensor:
            return right if factor is None else torch.cholesky_solve(right, factor)

        own = strength[self._wide][:, None]
        diagonal = self._variance[:, None] + own
        of_rest = torch.cat([of[name] for name in self._rest]) if self._rest else cross[:0]

        def product(weight: Tensor) -> Tensor:
            return self._times(weight) + own * weight - self._from_rest(eliminated(self._to_rest(weight)))

        right = of[self._wide] - self._from_rest(eliminated(of_rest))
        weight = torch.zeros_like(right) if self._last is None else self._last
        weight = _conjugate_gradients(product, right, weight, diagonal)
        self._last = weight
        rest = eliminated(of_rest - self._to_rest(weight)).split([len(of[name]) for name in self._rest])
        found = {self._wide: weight, **dict(zip(self._rest, rest, strict=True))}
        return torch.cat([found[name] for name in self._inputs])

    def _narrow(self, row: str, column: str) -> Tensor:
        return self._moments.covariance(row, column) / (self._scales[row] * self._scales[column])

    def _times(self, weight: Tensor) -> Tensor:
        return self._moments.covariance_times(self._wide, self._wide, weight) / self._scales[self._wide] ** 2

    def _to_rest(self, weight: Tensor) -> Tensor:
        """What the wide input's weights predict of every other input's columns, [narrow columns, out]."""
        found = [
            self._moments.covariance_times(name, self._wide, weight) / (self._scales[name] * self._scales[self._wide])
            for name in self._rest
        ]
        return torch.cat(found) if found else weight[:0]

    def _from_rest(self, weights: Tensor) -> Tensor:
        parts = weights.split([len(self._moments.sums[name]) for name in self._rest])
        total = torch.zeros(len(self._variance), weights.shape[1], dtype=weights.dtype)
        for name, part in zip(self._rest, parts, strict=True):
            scale = self._scales[name] * self._scales[self._wide]
            total += self._moments.covariance_times(self._wide, name, part) / scale
        return total


def _conjugate_gradients(product, right: Tensor, start: Tensor, diagonal: Tensor) -> Tensor:
    """`product`⁻¹ right for a positive definite `product`, columns independent of one another, from `start`."""
    goal = PRECISION**2 * (right * right / diagonal).sum()
    weight, residual = start.clone(), right - product(start)
    conditioned = residual / diagonal
    direction, size = conditioned, (residual * conditioned).sum(0)
    for _ in range(ITERATIONS):
        if size.sum() <= goal:
            break
        moved = product(direction)
        step = size / (direction * moved).sum(0).clamp_min(torch.finfo(right.dtype).tiny)
        weight += step * direction
        residual = residual - step * moved
        conditioned = residual / diagonal
        new = (residual * conditioned).sum(0)
        direction = conditioned + new / size.clamp_min(torch.finfo(right.dtype).tiny) * direction
        size = new
    return weight
