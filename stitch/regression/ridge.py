"""Ridge regression from any set of inputs onto B's residual stream: V7, V8, V9 and everything that reads more.

Inputs decide the family: `x` alone is the affine baseline that always ships, `x` and `codes` uses SAE features as a nonlinear
basis, look-ups alone are the no-source null.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from stitch.regression.conjugate import ConjugateGradients
from stitch.regression.moments import Moments
from stitch.regression.normal import NormalEquations
from stitch.regression.search import descend
from stitch.regression.sparse_gram import SparseGram

STRENGTHS = torch.logspace(-8, 1, 19, dtype=torch.float64)  # λ relative to the mean variance of an input column
FIRST = 10  # 1e-3, tried first
TOWARDS_PRIOR = torch.logspace(-8, 5, 27, dtype=torch.float64)  # where few tokens may have nothing to say against it


@dataclass(frozen=True)
class Ridge:
    """Weights per input, bias, the chosen λ (relative), and the held-out share of variance left unexplained.

    `strength_apart` is the λ of the input that had one of its own.
    """

    weights: dict[str, Float[Tensor, "d_in d_out"]]
    bias: Float[Tensor, " d_out"]
    strength: float
    unexplained: float
    strength_apart: float | None = None


def ridge(
    fit: Moments,
    held_out: Moments,
    inputs: tuple[str, ...],
    target: str = "target",
    prior: Mapping[str, Float[Tensor, "d_in d_out"]] | None = None,
    apart: str | None = None,
) -> Ridge:
    """Minimises Σ‖y − b − Σ u W_u‖² + Σ λ_u ‖W_u − T_u‖² over W and b; λ by the error on `held_out`.

    Every input block is scaled to unit mean variance first, so one λ is fair to blocks of different size; the bias is free.
    T is `prior` (zero where it names no input). λ goes down the error by decades, then by half decades; then, for the input
    named `apart` (a lift of thousands of columns, which overfits long before the rest), by decades beside the others. Each has
    a Cholesky factor of its own: faster than one eigendecomposition for all (3,000 columns, 12 factors: 2.3 s against 6.9 s),
    in the memory of one matrix. An input whose products are a SparseGram is solved for by conjugate gradients instead.
    Source: Hoerl & Kennard 1970, Technometrics 12.
    """
    choices = STRENGTHS if prior is None else TOWARDS_PRIOR
    scales = {name: _scale(fit, name) for name in inputs}
    has_wide = any(isinstance(fit.found(name, name), SparseGram) for name in inputs)
    equations = (ConjugateGradients if has_wide else NormalEquations)(fit, inputs, scales)
    widths = {name: len(fit.sums[name]) for name in inputs}
    start = {name: weight.double() for name, weight in (prior or {}).items()}
    cross = torch.cat([_unexplained_by(start, fit, name, target) / scales[name] for name in inputs])
    spread = float((held_out.squares[target] / held_out.count - held_out.means[target] ** 2).sum())

    def attempt(index: int, index_apart: int) -> _Attempt:
        indices = {name: index_apart if name == apart else index for name in inputs}
        strengths = torch.cat([choices[indices[name]].expand(width) for name, width in widths.items()])
        change = equations.solve(cross, strengths)
        if change is None:
            return _Attempt(torch.inf, index, index_apart, {})
        parts = zip(inputs, change.split(list(widths.values())), strict=True)
        weights = {name: part / scales[name] + start.get(name, 0.0) for name, part in parts}
        return _Attempt(held_out_error(weights, fit, held_out, target), index, index_apart, weights)

    count, error = len(choices), attrgetter("error")
    best = descend(lambda index: attempt(index, index), error, start=FIRST, step=2, count=count)
    best = descend(lambda index: attempt(index, index), error, start=best.index, step=1, count=count, best=best)
    has_its_own = apart in inputs and len(inputs) > 1
    if has_its_own:
        index = best.index
        best = descend(lambda apart: attempt(index, apart), error, start=index, step=2, count=count, best=best)
    bias = fit.means[target] - sum(fit.means[name] @ weight for name, weight in best.weights.items())
    strength_apart = float(choices[best.index_apart]) if has_its_own else None
    return Ridge(best.weights, bias, float(choices[best.index]), best.error / spread, strength_apart)


@dataclass(frozen=True)
class _Attempt:
    error: float
    index: int  # of λ
    index_apart: int
    weights: dict[str, Tensor]


def held_out_error(
    weights: Mapping[str, Float[Tensor, "d_in d_out"]], fit: Moments, held_out: Moments, target: str = "target"
) -> float:
    """Mean squared error on held-out tokens of Σ u W_u with the bias that makes the means of `fit` agree.

    The bias is refitted nowhere, so its mismatch counts as error too. Infinite where weights overflow.
    """
    names = list(weights)
    bias = fit.means[target] - sum(fit.means[name] @ weight for name, weight in weights.items())
    left = held_out.means[target] - sum(held_out.means[name] @ weight for name, weight in weights.items())
    total = held_out.squares[target].sum()
    for place, first in enumerate(names):
        weight = weights[first]
        total = total - 2 * (weight * held_out.product(first, target)).sum()
        for second in names[place:]:
            product = (weight * held_out.product_times(first, second, weights[second])).sum()
            total = total + (product if second == first else 2 * product)
    error = float(total / held_out.count - 2 * (bias @ left) + bias @ bias)
    return error if np.isfinite(error) else torch.inf


def _unexplained_by(start: Mapping[str, Tensor], fit: Moments, name: str, target: str) -> Tensor:
    """Covariance of an input with what the prior leaves of the target."""
    left = fit.covariance(name, target)
    for other, weight in start.items():
        left = left - fit.covariance_times(name, other, weight)
    return left


def shares(found: Ridge, moments: Moments) -> dict[str, float]:
    """What part of the variance of ŷ = Σ u W_u each input brings, tr Cov(u W_u, ŷ) / tr Cov(ŷ, ŷ): they sum to 1.

    An input that works against others has a negative share.
    """
    names = list(found.weights)

    def with_all(name: str) -> Tensor:
        explained = (moments.covariance_times(name, other, found.weights[other]) for other in names)
        return (found.weights[name] * sum(explained, torch.tensor(0.0))).sum()

    parts = {name: float(with_all(name)) for name in names}
    total = sum(parts.values()) or 1.0
    return {name: part / total for name, part in parts.items()}


def _scale(moments: Moments, name: str) -> Tensor:
    variance = moments.squares[name] / moments.count - moments.means[name] ** 2
    return variance.mean().clamp_min(1e-30).sqrt()
