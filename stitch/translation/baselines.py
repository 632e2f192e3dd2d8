"""Baselines: the rows `identity`, `mean-shift` and `procrustes`. They use no SAE."""

import torch

from stitch.regression.moments import Moments
from stitch.translation.matched import linear
from stitch.translation.types import Residual, Term, Translation


def identity(site: int, width_b: int) -> Translation:
    """x itself, truncated or zero-padded to B's width. It is exact where A is B and the sites are the same."""
    return Translation("identity", (Term(Residual(site), None),), torch.zeros(width_b))


def mean_shift(site: int, moments: Moments) -> Translation:
    """x plus the difference between the mean of B's stream and that of A's."""
    mean_a, mean_b = moments.means["x"], moments.means["target"]
    padded = torch.zeros_like(mean_b)
    shared = min(len(mean_a), len(mean_b))
    padded[:shared] = mean_a[:shared]
    return Translation("mean-shift", (Term(Residual(site), None),), (mean_b - padded).float())


def procrustes(site: int, moments: Moments) -> Translation:
    """The orthogonal map and scale that fit paired activations best; between unequal widths an isometry.

    Source: Schönemann 1966, Psychometrika 31; scale: Schönemann & Carroll 1970, Psychometrika 35.
    """
    left, values, right = torch.linalg.svd(moments.covariance("x", "target"), full_matrices=False)
    rotation = left @ right
    spread = (rotation.T @ moments.covariance("x", "x") @ rotation).trace()
    return linear("procrustes", values.sum() / spread * rotation, site, moments)
