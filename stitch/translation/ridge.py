"""V7 and V9: ridge regression from any set of inputs onto B's residual stream.

Inputs decide the family: `x` alone is the affine baseline that always ships, `x` and `embedding` adds what B knows of the token
on its own, `embedding` alone is the no-source null, `x` and `codes` uses SAE features as a nonlinear basis.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stitch.translation.moments import Moments

STRENGTHS = torch.logspace(-8, 1, 19, dtype=torch.float64)  # λ relative to the mean variance of an input column


@dataclass(frozen=True)
class Ridge:
    """Weights per input, bias, the chosen λ (relative), and the held-out share of variance left unexplained."""

    weights: dict[str, Float[Tensor, "d_in d_out"]]
    bias: Float[Tensor, " d_out"]
    strength: float
    unexplained: float


def ridge(fit: Moments, held_out: Moments, inputs: tuple[str, ...], target: str = "target") -> Ridge:
    """Minimises Σ‖y − b − Σ u W_u‖² + λ Σ‖W_u‖² over W and b; λ by the error on `held_out`, from one factorisation.

    Every input block is scaled to unit mean variance first, so one λ is fair to blocks of different size; the bias is free.
    Source: Hoerl & Kennard 1970, Technometrics 12.
    """
    scales = {name: _scale(fit, name) for name in inputs}
    gram, cross = _centred(fit, inputs, target, scales)
    values, vectors = torch.linalg.eigh(gram)
    values = values.clamp_min(0)
    rotated = vectors.T @ cross

    # Held-out error of the same centred model: the bias is refitted nowhere, so its mismatch counts as error too.
    shift_in = torch.cat([(held_out.mean(name) - fit.mean(name)) / scales[name] for name in inputs])
    shift_out = held_out.mean(target) - fit.mean(target)
    gram_held, cross_held = _centred(held_out, inputs, target, scales)
    gram_held = vectors.T @ (gram_held + torch.outer(shift_in, shift_in)) @ vectors
    cross_held = vectors.T @ (cross_held + torch.outer(shift_in, shift_out))
    total = (held_out.squares[target] / held_out.count - held_out.mean(target) ** 2).sum()

    def error(strength: Tensor) -> Tensor:
        weights = rotated / (values + strength)[:, None]
        return (
            total + shift_out @ shift_out - 2 * (weights * cross_held).sum() + (weights * (gram_held @ weights)).sum()
        )

    errors = torch.stack([error(strength) for strength in STRENGTHS])
    best = int(errors.argmin())
    solution = vectors @ (rotated / (values + STRENGTHS[best])[:, None])
    widths = [len(fit.sums[name]) for name in inputs]
    weights = {name: part / scales[name] for name, part in zip(inputs, solution.split(widths), strict=True)}
    bias = fit.mean(target) - sum(fit.mean(name) @ weight for name, weight in weights.items())
    return Ridge(weights, bias, float(STRENGTHS[best]), float(errors[best] / total))


def _scale(moments: Moments, name: str) -> Tensor:
    variance = moments.squares[name] / moments.count - moments.mean(name) ** 2
    return variance.mean().clamp_min(1e-30).sqrt()


def _centred(
    moments: Moments, inputs: tuple[str, ...], target: str, scales: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    gram = torch.cat(
        [
            torch.cat([moments.covariance(first, second) / scales[first] / scales[second] for second in inputs], 1)
            for first in inputs
        ]
    )
    cross = torch.cat([moments.covariance(name, target) / scales[name] for name in inputs])
    return gram, cross
