"""V1, V2, V4, V5, V6, V8: translations through a matching of two dictionaries.

Notation as in the literature: D decoder rows, s_i the regression coefficient of B's matched feature on A's feature i,
Ω_i = E[z_i²] · sim_i the weight of a pair.
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

RELATIVE_RIDGE = 1e-4  # of a feature's own second moment, or of the mean eigenvalue


@dataclass(frozen=True)
class Images:
    """For every matched feature of A: its direction in A, the direction in B it goes to (with s_i inside), its weight Ω_i."""

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
    """V1: ŷ = b + Σ_i s_i z_i D̃_i, with b = E[y] − E[Σ …] so that unmatched features leave no constant hole."""
    found = images(matched, a, b)
    weight = torch.zeros(a.decoder.shape[0], mean_b.shape[0], dtype=torch.float64)
    weight[found.features] = found.target
    bias = mean_b - matched.mean_a @ weight
    return Translation(name, (Term(Codes(site, a), weight.float()),), bias.float())


def error_carry(name: str, start: Translation, fit: Moments, held_out: Moments) -> Translation:
    """V2: ŷ = V1 + (x − x̂) W_e, with W_e the ridge from what A's SAE leaves unexplained to what V1 (`start`) does."""
    (term,) = start.terms
    assert isinstance(term.input, Codes) and term.weight is not None
    weight, decoder = term.weight.double(), term.input.dictionary.decoder.double().cpu()
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
    """V8: ridge on paired activations that shrinks to `start`, a linear map through the matching, instead of to zero."""
    (term,) = start.terms
    assert isinstance(term.input, Residual) and term.weight is not None
    found = ridge(fit, held_out, ("x",), prior={"x": term.weight})
    return Translation(name, (Term(term.input, found.weights["x"].float()),), found.bias.float())


def directions(name: str, matched: Matched, a: Dictionary, b: Dictionary, site: int, moments: Moments) -> Translation:
    """V4: least squares on matched directions, T = (D_AᵀΩD_A + λI)⁻¹ D_AᵀΩ S D̃; no paired activation is used but means."""
    found = images(matched, a, b)
    gram = found.source.T @ (found.weight[:, None] * found.source)
    cross = found.source.T @ (found.weight[:, None] * found.target)
    ridge = RELATIVE_RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    return linear(name, torch.linalg.solve(gram + ridge, cross), site, moments)


def rotation(name: str, matched: Matched, a: Dictionary, b: Dictionary, site: int, moments: Moments) -> Translation:
    """V5: orthogonal Procrustes on matched directions, R = UVᵀ of svd(D_AᵀΩSD̃), and its least-squares scale."""
    found = images(matched, a, b)
    solved = orthogonal_map(found.source, found.target, found.weight)
    return linear(name, solved.scale * solved.matrix, site, moments)


def linear(name: str, weight: Float[Tensor, "d_a d_b"], site: int, moments: Moments) -> Translation:
    """x W + b with the bias that makes the means agree."""
    bias = moments.means["target"] - moments.means["x"] @ weight
    return Translation(name, (Term(Residual(site), weight.float()),), bias.float())
