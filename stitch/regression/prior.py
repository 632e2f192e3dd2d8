"""Ridge regression that shrinks towards given weights instead of zero, such as those of an existing layer."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stitch.errors import StitchError
from stitch.regression.moments import Moments
from stitch.regression.ridge import STRENGTHS


@dataclass(frozen=True)
class Towards:
    """The weights, the chosen λ (relative), and the share of the target's held-out sum of squares left unexplained."""

    weight: Float[Tensor, "d_in d_out"]
    strength: float
    unexplained: float


def ridge_towards(
    fit: Moments, held_out: Moments, prior: Float[Tensor, "d_in d_out"], *, inputs: str, target: str
) -> Towards:
    """Minimises Σ‖y − u W‖² + λ ‖W − prior‖² over W, without bias; λ by the error on `held_out`.

    λ is relative to the mean eigenvalue of Σ uᵀu. One eigendecomposition serves all λ.
    Raises: StitchError where the target is zero on all held-out tokens.
    Source: Hoerl & Kennard 1970, Technometrics 12, applied to y − u · prior.
    """
    gram, cross = fit.product(inputs, inputs), fit.product(inputs, target)
    gram_held, cross_held = held_out.product(inputs, inputs), held_out.product(inputs, target)
    values, vectors = torch.linalg.eigh(gram)
    values = values.clamp_min(0)
    scale = values.mean()
    scale = scale if scale > 0 else torch.ones_like(scale)
    rotated = vectors.T @ (cross - gram @ prior)
    rest_held = vectors.T @ (cross_held - gram_held @ prior)
    gram_held_rotated = vectors.T @ gram_held @ vectors
    total = held_out.squares[target].sum()
    if not total > 0:
        raise StitchError(
            f"a regression needs a target that is not zero on held-out tokens; `{target}` is. Give more text."
        )
    at_prior = total - 2 * (prior * cross_held).sum() + (prior * (gram_held @ prior)).sum()

    def error(strength: Tensor) -> Tensor:
        change = rotated / (values + strength * scale)[:, None]
        return at_prior - 2 * (change * rest_held).sum() + (change * (gram_held_rotated @ change)).sum()

    errors = torch.stack([error(strength) for strength in STRENGTHS])
    best = int(errors.argmin())
    change = vectors @ (rotated / (values + STRENGTHS[best] * scale)[:, None])
    return Towards(prior + change, float(STRENGTHS[best]), float(errors[best] / total))
