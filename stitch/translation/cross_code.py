"""V3: B's codes predicted from A's on the candidate graph, ẑ_B = z C, then decoded. Handles features that split or merge.

Column j of C is the ridge of z^B_j on its m best-correlated features of A, so C has m nonzeros per feature of B and can be
read. m is chosen by the error on held-out tokens of B's stream itself.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from matching.types import Candidates
from sae.types import Dictionary
from stitch.translation.moments import Moments
from stitch.translation.ridge import held_out_error
from stitch.translation.types import Codes, Term, Translation

WIDTHS = (1, 4, 16, 64)  # m
RELATIVE_RIDGE = 1e-3  # of the mean variance of the m features


@dataclass(frozen=True)
class CrossCode:
    """C, the number of its nonzeros per column, and the held-out share of variance that ẑ_B D_B leaves unexplained."""

    weight: Float[Tensor, "features_a features_b"]
    width: int
    unexplained: float


def cross_code(
    graph: Candidates, b: Dictionary, deviation_b: Float[Tensor, " features_b"], fit: Moments, held_out: Moments
) -> CrossCode:
    """The best C among those with m candidates of `graph` per feature of B; moments hold `codes` (of A) and `target`.

    `deviation_b` are the standard deviations of B's features.
    """
    decoder = b.decoder.double().cpu()
    total = (held_out.squares["target"] / held_out.count - held_out.mean("target") ** 2).sum()
    best: CrossCode | None = None
    for width in WIDTHS:
        weight = coefficients(graph, width, fit, deviation_b)
        error = held_out_error({"codes": weight @ decoder}, fit, held_out)
        if best is None or error / total < best.unexplained:
            best = CrossCode(weight, width, float(error / total))
    assert best is not None
    return best


def translation(name: str, found: CrossCode, a: Dictionary, b: Dictionary, site: int, fit: Moments) -> Translation:
    """ŷ = b + z C D_B, with the bias that makes the means agree."""
    weight = found.weight @ b.decoder.double().cpu()
    bias = fit.mean("target") - fit.mean("codes") @ weight
    return Translation(name, (Term(Codes(site, a), weight.float()),), bias.float())


def coefficients(
    graph: Candidates, width: int, fit: Moments, deviation_b: Float[Tensor, " features_b"]
) -> Float[Tensor, "features_a features_b"]:
    """C with at most `width` nonzeros per column: each feature of B on its best-correlated features of A."""
    rows, cols, correlation = _strongest(graph, width)
    weight = torch.zeros(graph.shape, dtype=torch.float64)
    counts = np.bincount(cols, minlength=graph.shape[1])
    product, mean = fit.product("codes", "codes"), fit.mean("codes")
    deviation_a = (product.diagonal() / fit.count - mean.square()).clamp_min(0).sqrt()
    for count in np.unique(counts[counts > 0]):  # features with the same number of candidates are solved together
        features = np.flatnonzero(counts == count)
        chosen = np.isin(cols, features)
        members = torch.from_numpy(rows[chosen].reshape(len(features), count))
        cross = torch.from_numpy(correlation[chosen].reshape(len(features), count)) * deviation_a[members]
        here = members[:, :, None], members[:, None, :]
        gram = product[here] / fit.count - mean[here[0]] * mean[here[1]]
        ridge = RELATIVE_RIDGE * gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-30)
        gram = gram + ridge[:, None, None] * torch.eye(int(count), dtype=torch.float64)
        solved = torch.linalg.solve(gram, (cross * deviation_b[features][:, None])[..., None])[..., 0]
        weight[members, torch.from_numpy(features)[:, None]] = solved
    return weight


def _strongest(graph: Candidates, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The `width` edges of highest positive correlation of every feature of B, ordered by feature."""
    order = np.lexsort((-graph.correlation, graph.cols))
    order = order[graph.correlation[order] > 0]
    cols = graph.cols[order]
    rank = np.arange(len(cols)) - np.searchsorted(cols, cols)
    kept = order[rank < width]
    return graph.rows[kept], graph.cols[kept], graph.correlation[kept]
