"""Affine maps between the residual streams of two sites, in both directions, and the maps that they are compared with."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from matching.procrustes import random_rotation
from stitch.activations.paired import Paired
from stitch.regression.moments import Moments, accumulate
from stitch.regression.ridge import ridge

Split = tuple[Moments, Moments]  # of the fit split and the sweep split

TRANSFERRED, PROCRUSTES, UNCHANGED, RANDOM = (
    "transferred",
    "baseline:procrustes",
    "baseline:unchanged",
    "null:random-map",
)


@dataclass(frozen=True)
class Affine:
    """x ↦ x @ matrix + bias."""

    matrix: Float[Tensor, "d_in d_out"]
    bias: Float[Tensor, " d_out"]

    def __call__(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        return x @ self.matrix.to(x.dtype) + self.bias.to(x.dtype)


@dataclass(frozen=True)
class Maps:
    """A map from A's stream to B's and one back, each fitted on its own: neither is the other's inverse."""

    there: Affine
    back: Affine


def pair_moments(fit: Paired, held_out: Paired) -> Split:
    """The moments of "x", A's stream, and "y", B's, on the kept tokens of both splits."""
    pairs = [("x", "x"), ("x", "y"), ("y", "y")]
    return tuple(accumulate(({"x": x, "y": y} for x, y, _ in one.chunks()), pairs) for one in (fit, held_out))  # pyright: ignore[reportReturnType]


def all_maps(moments: Split, seed: int) -> dict[str, Maps]:
    """By row: ridge regression in both directions, and what it is compared with.

    Orthogonal maps with the best scale (between unequal widths isometries), the stream unchanged (cut or filled with zeros),
    and a random orthogonal map of the same scale, drawn with `seed`.
    Source of the use of two affine maps: Chen et al. 2025 (2506.06609), who train theirs.
    """
    fit, held_out = moments
    there, back = (ridge(fit, held_out, (source,), target) for source, target in (("x", "y"), ("y", "x")))
    rotation, scales = _rotation(fit)
    width_a, width_b = rotation.shape
    drawn = random_rotation(width_a, width_b, torch.Generator().manual_seed(seed))
    unchanged = torch.eye(width_a, width_b, dtype=torch.float64)
    none = torch.zeros((), dtype=torch.float64)
    return {
        TRANSFERRED: Maps(Affine(there.weights["x"], there.bias), Affine(back.weights["y"], back.bias)),
        PROCRUSTES: Maps(
            _centred(fit, "x", "y", scales[0] * rotation), _centred(fit, "y", "x", scales[1] * rotation.T)
        ),
        UNCHANGED: Maps(Affine(unchanged, none.expand(width_b)), Affine(unchanged.T, none.expand(width_a))),
        RANDOM: Maps(_centred(fit, "x", "y", scales[0] * drawn), _centred(fit, "y", "x", scales[1] * drawn.T)),
    }


def unexplained(maps: Maps, moments: Split) -> dict[str, float]:
    """The share of the held-out variance that each of the two maps leaves unexplained."""
    return {name: _error(affine, moments[1], *ends) for name, affine, ends in
            (("there", maps.there, ("x", "y")), ("back", maps.back, ("y", "x")))}  # fmt: skip


def _error(affine: Affine, held: Moments, source: str, target: str) -> float:
    """Mean squared error over variance, from moments: E‖y − xM − b‖² in terms of E[xxᵀ], E[xyᵀ], E[y²]."""
    m, b = affine.matrix, affine.bias
    mean_x, mean_y = held.means[source], held.means[target]
    squares = held.squares[target].sum() / held.count
    cross = (m * held.product(source, target)).sum() / held.count
    own = (m * (held.product(source, source) @ m)).sum() / held.count
    error = squares - 2 * cross + own + b @ b + 2 * b @ (mean_x @ m) - 2 * b @ mean_y
    return float(error / (squares - mean_y @ mean_y))


def _rotation(fit: Moments) -> tuple[Float[Tensor, "d_a d_b"], tuple[float, float]]:
    """The orthogonal map of Schönemann 1966 and the least-squares scales there and back."""
    left, values, right = torch.linalg.svd(fit.covariance("x", "y"), full_matrices=False)
    rotation = left @ right
    there = (rotation.T @ fit.covariance("x", "x") @ rotation).trace()
    back = (rotation @ fit.covariance("y", "y") @ rotation.T).trace()
    return rotation, (float(values.sum() / there), float(values.sum() / back))


def _centred(fit: Moments, source: str, target: str, matrix: Float[Tensor, "d_in d_out"]) -> Affine:
    """The map that takes the source's mean to the target's."""
    return Affine(matrix, fit.means[target] - fit.means[source] @ matrix)
