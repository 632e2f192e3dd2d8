"""The orthogonal map between two spaces that aligns matched directions, and its null, a random orthogonal map."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from matching.errors import MatchError


@dataclass(frozen=True)
class Rotation:
    """x ↦ scale · x @ matrix. The matrix is orthogonal; for unequal widths the fewer of its rows and columns are orthonormal."""

    matrix: Float64[Tensor, "d_a d_b"]
    scale: float


def orthogonal_map(
    source: Float[Tensor, "pairs d_a"], target: Float[Tensor, "pairs d_b"], weights: Float[Tensor, " pairs"]
) -> Rotation:
    """R = U Vᵀ of the weighted cross-moment svd(sourceᵀ Ω target) = U Σ Vᵀ, with its least-squares scale; in float64.

    For d_a ≤ d_b, R (an isometry: R Rᵀ = I) minimises Σ ω ‖s R − t‖² over all such maps, reflections included. For
    d_a > d_b (Rᵀ R = I) it maximises the alignment Σ ω ⟨s R, t⟩: least squares has no closed form there. The scale
    trΣ / Σ ω ‖s R‖² minimises Σ ω ‖scale · s R − t‖² for this R.

    Raises: MatchError when the pairs leave R undetermined (rank of the cross-moment below min(d_a, d_b)), or when
        anything is not finite or a weight is negative.
    Source: Schönemann 1966, Psychometrika 31; scale: Schönemann & Carroll 1970, Psychometrika 35.

    >>> import torch, matching
    >>> turned = torch.tensor([[0.0, 2.0], [-2.0, 0.0]])  # a quarter turn, twice as long
    >>> found = matching.orthogonal_map(torch.eye(2), turned, torch.ones(2))
    >>> found.matrix.round().tolist(), round(found.scale, 6)
    ([[0.0, 1.0], [-1.0, 0.0]], 2.0)
    """
    source, target, weights = source.double(), target.double(), weights.double()
    if not (source.isfinite().all() and target.isfinite().all() and weights.isfinite().all() and (weights >= 0).all()):
        raise MatchError(
            "an orthogonal map needs finite directions and weights ≥ 0; got NaN, infinity or a negative weight. "
            "Check the dictionaries and drop pairs with negative scores."
        )
    weighted = source * weights[:, None]
    u, sigma, vh = torch.linalg.svd(weighted.T @ target, full_matrices=False)
    need = len(sigma)
    tolerance = sigma.max() * max(source.shape[1], target.shape[1]) * torch.finfo(torch.float64).eps
    rank = int((sigma > tolerance).sum())
    if rank < need:
        raise MatchError(
            f"an orthogonal map between widths {source.shape[1]} and {target.shape[1]} needs {need} independent pairs; "
            f"got {len(source)} pairs of rank {rank}. Lower the matching threshold or train wider dictionaries."
        )
    matrix = u @ vh
    length = ((weighted @ matrix) * (source @ matrix)).sum()
    return Rotation(matrix, float(sigma.sum() / length))


def random_rotation(d_a: int, d_b: int, generator: torch.Generator) -> Float64[Tensor, "d_a d_b"]:
    """Uniform (Haar) random orthogonal map; for unequal widths the fewer of its rows and columns are orthonormal.

    Source: Mezzadri 2007, Notices of the AMS 54: the signs of R's diagonal make QR uniform.
    """
    tall = torch.randn(max(d_a, d_b), min(d_a, d_b), dtype=torch.float64, generator=generator, device=generator.device)
    q, r = torch.linalg.qr(tall)
    q = q * torch.sign(torch.diagonal(r))
    return q if d_a >= d_b else q.T
