"""Translations through a matching of two dictionaries: the rows `permutation`, `permutation+error`, `directions`, `prior` and
`rotation`, and with a soft matching `barycentric`.

Notation: D has decoder rows, D̃_i is the (mean) decoder row of B that feature i of A is matched to, s_i the regression coefficient
of B's matched feature on feature i, Ω_i = E[z_i²] · sim_i the weight of a pair.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from matching.procrustes import orthogonal_map
from sae.types import Dictionary
from stitch.features.matched import Matched
from stitch.regression.moments import Moments
from stitch.regression.ridge import ridge
from stitch.translation.types import Codes, Residual, Term, Translation

RELATIVE_RIDGE = 1e-4  # λ as a share of a feature's second moment, or of the mean eigenvalue


@dataclass(frozen=True)
class Images:
    """For every matched feature of A: its direction in A, its image s_i D̃_i in B, and its weight Ω_i."""

    features: Int[Tensor, " matched"]
    source: Float[Tensor, "matched d_a"]
    target: Float[Tensor, "matched d_b"]
    weight: Float[Tensor, " matched"]


def images(matched: Matched, a: Dictionary, b: Dictionary) -> Images:
    """Barycentre of the matched directions, D̃_i = Σ_j P_ij D_B[j] / Σ_j P_ij, times s_i = E[z_i z̃_i] / (E[z_i²] + λ)."""
    features, position = matched.rows.unique(return_inverse=True)
    total = torch.zeros(len(features), dtype=torch.float64).index_add_(0, position, matched.mass)
    share = matched.mass / total[position]
    directions = b.decoder.double().cpu()
    target = torch.zeros(len(features), directions.shape[1], dtype=torch.float64)
    target.index_add_(0, position, share[:, None] * directions[matched.cols])
    co_moment = torch.zeros(len(features), dtype=torch.float64).index_add_(0, position, share * matched.co_moment)
    similarity = torch.zeros(len(features), dtype=torch.float64).index_add_(0, position, share * matched.similarity)
    second = matched.second_a[features]
    scale = co_moment / (second * (1 + RELATIVE_RIDGE)).clamp_min(1e-30)
    weight = second * similarity.clamp_min(0)
    return Images(features, a.decoder.double().cpu()[features], scale[:, None] * target, weight)


def permutation(
    name: str, matched: Matched, a: Dictionary, b: Dictionary, site: int, mean_b: Float[Tensor, " d_b"]
) -> Translation:
    """ŷ = b + Σ_i s_i z_i D̃_i. b makes the means agree, so the mean of unmatched features is not lost."""
    found = images(matched, a, b)
    weight = torch.zeros(a.decoder.shape[0], mean_b.shape[0], dtype=torch.float64)
    weight[found.features] = found.target
    bias = mean_b - matched.mean_a @ weight
    return Translation(name, (Term(Codes(site, a), weight.float()),), bias.float())


def error_carry(name: str, start: Translation, fit: Moments, held_out: Moments) -> Translation:
    """`start`, a `permutation`, plus (x − x̂) W_e. W_e is a ridge from the error of A's SAE to the error of `start`."""
    (term,) = start.terms
    assert isinstance(term.input, Codes)
    weight, decoder = term.matrix.double(), term.input.dictionary.decoder.double().cpu()
    whole = torch.eye(decoder.shape[1], dtype=torch.float64)
    target = torch.eye(weight.shape[1], dtype=torch.float64)

    def with_errors(moments: Moments) -> Moments:
        left = moments.combined("left", {"target": target, "codes": -weight}, ("x", "codes", "target"))
        return left.combined("error", {"x": whole, "codes": -decoder}, ("left",))

    found = ridge(with_errors(fit), with_errors(held_out), ("error",), target="left")
    carried = found.weights["error"]
    terms = (Term(term.input, (weight - decoder @ carried).float()), Term(Residual(term.input.site), carried.float()))
    return Translation(name, terms, found.bias.float())


def prior(name: str, start: Translation, fit: Moments, held_out: Moments) -> Translation:
    """Ridge on paired activations that shrinks towards `start`, a linear map through the matching, instead of zero."""
    (term,) = start.terms
    assert isinstance(term.input, Residual)
    found = ridge(fit, held_out, ("x",), prior={"x": term.matrix})
    return Translation(name, (Term(term.input, found.weights["x"].float()),), found.bias.float())


def directions(name: str, matched: Matched, a: Dictionary, b: Dictionary, site: int, moments: Moments) -> Translation:
    """Least squares on matched directions, T = (D_AᵀΩD_A + λI)⁻¹ D_AᵀΩ S D̃. Of paired activations only the means are used."""
    found = images(matched, a, b)
    gram = found.source.T @ (found.weight[:, None] * found.source)
    cross = found.source.T @ (found.weight[:, None] * found.target)
    ridge = RELATIVE_RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    return linear(name, torch.linalg.solve(gram + ridge, cross), site, moments)


def rotation(name: str, matched: Matched, a: Dictionary, b: Dictionary, site: int, moments: Moments) -> Translation:
    """Orthogonal Procrustes on matched directions, R = UVᵀ of svd(D_AᵀΩSD̃), times its least-squares scale."""
    found = images(matched, a, b)
    solved = orthogonal_map(found.source, found.target, found.weight)
    return linear(name, solved.scale * solved.matrix, site, moments)


def linear(name: str, weight: Float[Tensor, "d_a d_b"], site: int, moments: Moments) -> Translation:
    """x W + b, where b makes the mean of the result that of B's stream."""
    bias = moments.means["target"] - moments.means["x"] @ weight
    return Translation(name, (Term(Residual(site), weight.float()),), bias.float())
