"""Ridge regression of one variable on several input blocks, with λ chosen by the error on held-out tokens.

The inputs decide the kind of translation: residual stream alone (`x`) is the affine baseline, `x` with SAE codes is a nonlinear
one, look-up tables alone are the no-source null.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from operator import attrgetter

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from stitch.errors import StitchError
from stitch.regression.conjugate import ConjugateGradients
from stitch.regression.moments import Moments
from stitch.regression.normal import NormalEquations
from stitch.regression.search import descend
from stitch.regression.sparse_gram import SparseGram

STRENGTHS = torch.logspace(-8, 1, 19, dtype=torch.float64)  # λ relative to the mean variance of an input column
ROUNDING = 1e-10  # of the mean square: less variance than this is lost in the difference of two sums
FIRST = 10  # index of 1e-3, tried first
TOWARDS_PRIOR = torch.logspace(
    -8, 5, 27, dtype=torch.float64
)  # larger λ too, since few tokens may not improve on a prior


@dataclass(frozen=True)
class Ridge:
    """Weights per input, bias, the chosen λ (relative), and the share of the held-out variance left unexplained.

    `strength_apart` is the λ of the input named `apart`, if it had one of its own.
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
    tick: Callable[[], None] = lambda: None,
) -> Ridge:
    """Minimises Σ‖y − b − Σ u W_u‖² + Σ λ_u ‖W_u − T_u‖² over W and b; λ by the error on `held_out`.

    Every input block is scaled to unit mean variance first, so that one λ suits blocks of different size. The bias is not
    penalised. T is `prior`, or zero for inputs that it does not name. λ is searched downhill by decades, then by half decades.
    The input named `apart` then gets a λ of its own, by decades: a lift with thousands of columns overfits long before the
    others. Each λ needs a Cholesky factor, in the memory of one matrix; that is faster than one eigendecomposition for all
    (3,000 columns, 12 factors: 2.3 s against 6.9 s). An input whose products are a SparseGram is solved for by conjugate
    gradients instead. `tick` is called after each λ that is tried.
    Raises: StitchError where the target is constant on the held-out tokens, or rounding prevents every solution.
    Source: Hoerl & Kennard 1970, Technometrics 12.
    """
    variance = float((held_out.squares[target] / held_out.count - held_out.means[target] ** 2).sum())
    if not variance > 0:
        raise StitchError(
            f"a regression needs a target that varies on held-out tokens; `{target}` does not. Give more text, or another site."
        )
    problem = _Problem(fit, held_out, inputs, target, dict(prior or {}))
    choices = STRENGTHS if prior is None else TOWARDS_PRIOR
    has_its_own = apart in inputs and len(inputs) > 1
    best = _lowest(problem, choices, apart if has_its_own else None, tick)
    if not best.weights:
        raise StitchError(
            f"no regression of `{target}` on {', '.join(inputs)} can be solved in float64: their values differ too much in size. "
            "Look for outliers, or choose another site."
        )
    bias = fit.means[target] - sum(fit.means[name] @ weight for name, weight in best.weights.items())
    strength_apart = float(choices[best.index_apart]) if has_its_own else None
    return Ridge(best.weights, bias, float(choices[best.index]), best.error / variance, strength_apart)


class _Problem:
    """The scaled normal equations of `ridge`, to be solved for any choice of λ."""

    def __init__(self, fit: Moments, held_out: Moments, inputs: tuple[str, ...], target: str, prior: dict[str, Tensor]):
        self.inputs = inputs
        self._fit, self._held_out, self._target = fit, held_out, target
        self._scales = {name: _scale(fit, name) for name in inputs}
        self._widths = {name: len(fit.sums[name]) for name in inputs}
        is_wide = any(isinstance(fit.stored(name, name), SparseGram) for name in inputs)
        self._equations = (ConjugateGradients if is_wide else NormalEquations)(fit, inputs, self._scales)
        self._start = {name: weight.double() for name, weight in prior.items()}
        self._cross = torch.cat(
            [_unexplained_by(self._start, fit, name, target) / self._scales[name] for name in inputs]
        )

    def solve(self, strengths: Mapping[str, Tensor]) -> tuple[float, dict[str, Tensor]]:
        """Held-out error and weights, given a relative λ per input. The error is infinite where rounding prevents a solution."""
        per_column = torch.cat([strengths[name].expand(width) for name, width in self._widths.items()])
        change = self._equations.solve(self._cross, per_column)
        if change is None:
            return torch.inf, {}
        parts = zip(self.inputs, change.split(list(self._widths.values())), strict=True)
        weights = {name: part / self._scales[name] + self._start.get(name, 0.0) for name, part in parts}
        return held_out_error(weights, self._fit, self._held_out, self._target), weights


@dataclass(frozen=True)
class _Attempt:
    error: float
    index: int  # of λ
    index_apart: int  # of the λ of the input that has one of its own
    weights: dict[str, Tensor]


def _lowest(problem: _Problem, choices: Float[Tensor, " n"], apart: str | None, tick: Callable[[], None]) -> _Attempt:
    """The attempt with the lowest held-out error: one λ for all inputs, then another for the input `apart`."""

    def attempt(index: int, index_apart: int) -> _Attempt:
        strengths = {name: choices[index_apart if name == apart else index] for name in problem.inputs}
        error, weights = problem.solve(strengths)
        tick()
        return _Attempt(error, index, index_apart, weights)

    def same(index: int) -> _Attempt:
        return attempt(index, index)

    count, error = len(choices), attrgetter("error")
    best = descend(same, error, start=FIRST, step=2, count=count)
    best = descend(same, error, start=best.index, step=1, count=count, best=best)
    if apart is None:
        return best
    return descend(partial(attempt, best.index), error, start=best.index, step=2, count=count, best=best)


def held_out_error(
    weights: Mapping[str, Float[Tensor, "d_in d_out"]], fit: Moments, held_out: Moments, target: str = "target"
) -> float:
    """Mean squared error on held-out tokens of Σ u W_u + b, where b makes the means on the tokens of `fit` agree.

    b is not refitted on the held-out tokens, so that its error counts too. Infinite where the weights overflow.
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
    """Covariance [d_in, d_out] of the input `name` with the target minus what the prior weights `start` predict."""
    left = fit.covariance(name, target)
    for other, weight in start.items():
        left = left - fit.covariance_times(name, other, weight)
    return left


def shares(found: Ridge, moments: Moments) -> dict[str, float]:
    """The share of each input in the variance of ŷ = Σ u W_u: tr Cov(u W_u, ŷ) / tr Cov(ŷ, ŷ). The shares sum to 1.

    An input whose contribution is anticorrelated with ŷ has a negative share.
    """
    names = list(found.weights)

    def with_all(name: str) -> Tensor:
        explained = (moments.covariance_times(name, other, found.weights[other]) for other in names)
        return (found.weights[name] * sum(explained, torch.tensor(0.0))).sum()

    parts = {name: float(with_all(name)) for name in names}
    total = sum(parts.values()) or 1.0
    return {name: part / total for name, part in parts.items()}


def _scale(moments: Moments, name: str) -> Tensor:
    """Root of the mean variance of a variable's columns, or what rounding leaves of it where they are constant; 1 for zeros."""
    second = moments.squares[name] / moments.count
    variance = torch.maximum((second - moments.means[name] ** 2).mean(), ROUNDING * second.mean())
    return torch.where(variance > 0, variance, torch.ones_like(variance)).sqrt()
