"""Similarity of two sets of directions, or of two representations, as one number."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from matching.errors import MatchError

# Entries of the similarity matrix that are in memory at once.
_CHUNK = 2**24


def pair_cosines(source: Float[Tensor, "pairs d"], target: Float[Tensor, "pairs d"]) -> Float64[Tensor, " pairs"]:
    """Cosine of every matched pair of directions, both in one space: map A's decoder rows into B's space first."""
    return (_unit(source) * _unit(target)).sum(dim=1)


def mean_max_cosine(source: Float[Tensor, "features d"], target: Float[Tensor, "others d"]) -> float:
    """Mean max cosine similarity (MMCS): the mean over source directions of the highest cosine with any target direction.

    It is not symmetric.

    Source: Sharkey, Braun, Millidge 2022, "Taking features out of superposition with sparse autoencoders".

    >>> import torch, matching
    >>> matching.mean_max_cosine(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0]]))
    0.5
    """
    target = _unit(target)
    parts = _unit(source).split(max(1, _CHUNK // len(target)))
    return float(torch.cat([(part @ target.T).amax(dim=1) for part in parts]).mean())


def linear_cka(
    covariance_a: Float64[Tensor, "d_a d_a"],
    covariance_b: Float64[Tensor, "d_b d_b"],
    covariance_ab: Float64[Tensor, "d_a d_b"],
) -> float:
    """Linear CKA, ‖C_ab‖² / (‖C_a‖ ‖C_b‖), with Frobenius norms of centred covariances.

    It is 1 for representations that are equal up to rotation and scale.

    Raises: MatchError when either side has no variance.
    Source: Kornblith et al. 2019, arXiv 1905.00414.

    >>> import numpy as np, torch, matching
    >>> x = np.random.default_rng(0).normal(size=(1000, 4))
    >>> y = 3 * x[:, ::-1]  # the same in another order and scale
    >>> both = torch.tensor(np.cov(x, y, rowvar=False))
    >>> round(matching.linear_cka(both[:4, :4], both[4:, 4:], both[:4, 4:]), 6)
    1.0
    """
    _check_finite(covariance_a, covariance_b, covariance_ab)
    scale = covariance_a.norm() * covariance_b.norm()
    if not scale > 0:
        raise MatchError("CKA needs activations that vary; got zero variance. Use more tokens.")
    return float(covariance_ab.square().sum() / scale)


def svcca(
    covariance_a: Float64[Tensor, "d_a d_a"],
    covariance_b: Float64[Tensor, "d_b d_b"],
    covariance_ab: Float64[Tensor, "d_a d_b"],
    *,
    explained: float = 0.99,
) -> float:
    """Mean canonical correlation between the leading principal components that explain `explained` of each variance.

    Raises: MatchError when either side has no variance.
    Source: Raghu et al. 2017, arXiv 1706.05806.
    """
    _check_finite(covariance_a, covariance_b, covariance_ab)
    whitened = _whitening(covariance_a, explained).T @ covariance_ab @ _whitening(covariance_b, explained)
    return float(torch.linalg.svdvals(whitened).clamp(max=1).mean())


def _whitening(covariance: Float64[Tensor, "d d"], explained: float) -> Float64[Tensor, "d kept"]:
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(0), vectors.flip(1)
    if not values[0] > 0:
        raise MatchError("SVCCA needs activations that vary; got zero variance. Use more tokens.")
    share = values.clamp(min=0).cumsum(0) / values.clamp(min=0).sum()
    kept = int((share < explained).sum()) + 1
    return vectors[:, :kept] / values[:kept].sqrt()


def _unit(directions: Float[Tensor, "features d"]) -> Float64[Tensor, "features d"]:
    """Zero stays zero."""
    _check_finite(directions)
    return torch.nn.functional.normalize(directions.double(), dim=1, eps=torch.finfo(torch.float64).tiny)


def _check_finite(*matrices: Tensor) -> None:
    if not all(matrix.isfinite().all() for matrix in matrices):
        raise MatchError(
            "a measure needs finite numbers; got NaN or infinity. Drop those tokens or check the model's precision."
        )
