"""Ridge regression that shrinks towards given weights instead of zero, such as those of an existing layer."""

from dataclasses import dataclass
from math import inf, isfinite
from operator import attrgetter

import torch
from jaxtyping import Float
from torch import Tensor

from stitch.errors import StitchError
from stitch.regression.moments import Moments
from stitch.regression.ridge import FIRST, STRENGTHS
from stitch.regression.search import descend


@dataclass(frozen=True)
class Towards:
    """The weights, the chosen λ (relative), and the share of the target's held-out sum of squares left unexplained."""

    weight: Float[Tensor, "d_in d_out"]
    strength: float
    unexplained: float


@dataclass(frozen=True)
class _Attempt:
    error: float
    index: int  # of λ
    change: Float[Tensor, "d_in d_out"] | None  # of the prior


def ridge_towards(
    fit: Moments, held_out: Moments, prior: Float[Tensor, "d_in d_out"], *, inputs: str, target: str
) -> Towards:
    """Minimises Σ‖y − u W‖² + λ ‖W − prior‖² over W, without bias; λ by the error on `held_out`.

    λ is relative to the mean eigenvalue of Σ uᵀu. It is searched downhill by decades, then by half decades (see `descend`), with
    a Cholesky factor for each: of 8,192 neurons all of them take less than one eigendecomposition.
    Raises: StitchError where the target is zero on all held-out tokens, or rounding prevents every solution.
    Source: Hoerl & Kennard 1970, Technometrics 12, applied to y − u · prior.
    """
    gram, cross = fit.product(inputs, inputs), fit.product(inputs, target)
    gram_held, cross_held = held_out.product(inputs, inputs), held_out.product(inputs, target)
    scale = gram.diagonal().mean()
    scale = scale if scale > 0 else torch.ones_like(scale)
    rest, rest_held = cross - gram @ prior, cross_held - gram_held @ prior
    total = held_out.squares[target].sum()
    if not total > 0:
        raise StitchError(
            f"a regression needs a target that is not zero on held-out tokens; `{target}` is. Give more text."
        )
    at_prior = total - 2 * (prior * cross_held).sum() + (prior * (gram_held @ prior)).sum()

    def attempt(index: int) -> _Attempt:
        shifted = gram.clone()
        shifted.diagonal().add_(STRENGTHS[index] * scale)
        factor, failed = torch.linalg.cholesky_ex(shifted)
        if failed:
            return _Attempt(inf, index, None)
        change = torch.cholesky_solve(rest, factor)
        error = float(at_prior - 2 * (change * rest_held).sum() + (change * (gram_held @ change)).sum())
        return _Attempt(error, index, change) if isfinite(error) else _Attempt(inf, index, None)

    best = descend(attempt, attrgetter("error"), start=FIRST, step=2, count=len(STRENGTHS))
    best = descend(attempt, attrgetter("error"), start=best.index, step=1, count=len(STRENGTHS), best=best)
    if best.change is None:
        raise StitchError(
            f"no regression of `{target}` on {inputs} can be solved in float64: its values differ too much in size. "
            "Look for outliers, or choose another site."
        )
    return Towards(prior + best.change, float(STRENGTHS[best.index]), best.error / float(total))
