"""The row `cross-code`: B's codes predicted from A's on the candidate graph, ẑ_B = z C, then decoded. A feature may have several
partners, so features that split or merge between the models are covered.

Column j of C is nonzero only for the m features of A that correlate most with feature j of B, so C stays readable. All nonzeros
are fitted together by ridge regression with B's stream as the target, because B's decoder directions are not orthogonal. m is
chosen by the error on held-out tokens.
"""

# pyright: reportCallIssue=false
# (scipy.sparse carries no types)

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor

from matching.types import Candidates
from sae.types import Dictionary
from stitch.regression.moments import Moments
from stitch.regression.ridge import held_out_error
from stitch.translation.types import Codes, Term, Translation

WIDTHS = (1, 4, 16, 64)  # m
RELATIVE_RIDGE = 1e-3  # λ as a share of the mean variance of the m features, or of the variance of an edge's feature
PRECISION, ITERATIONS = 1e-4, 200  # of conjugate gradients: relative residual, and the most steps
EDGES = 2**16  # processed at a time


@dataclass(frozen=True)
class CrossCode:
    """C, its nonzeros per column (`width`), and the share of held-out variance that ẑ_B D_B leaves unexplained."""

    weight: Float[Tensor, "features_a features_b"]
    width: int
    unexplained: float


def cross_code(
    graph: Candidates, b: Dictionary, deviation_b: Float[Tensor, " features_b"], fit: Moments, held_out: Moments
) -> CrossCode:
    """C with the lowest held-out error among the WIDTHS of nonzeros per column. Edges come from `graph`.

    The moments hold "codes" (of A) and "target"; `deviation_b` is the standard deviation of each feature of B.
    """
    decoder = b.decoder.double().cpu()
    total = (held_out.squares["target"] / held_out.count - held_out.means["target"] ** 2).sum()
    best: CrossCode | None = None
    for width in WIDTHS:
        weight = towards_stream(coefficients(graph, width, fit, deviation_b), fit, decoder)
        error = held_out_error({"codes": weight @ decoder}, fit, held_out)
        if best is None or error / total < best.unexplained:
            best = CrossCode(weight, width, float(error / total))
    assert best is not None
    return best


def translation(name: str, found: CrossCode, a: Dictionary, b: Dictionary, site: int, fit: Moments) -> Translation:
    """ŷ = b + z C D_B; b makes the mean of ŷ that of B's stream."""
    weight = found.weight @ b.decoder.double().cpu()
    bias = fit.means["target"] - fit.means["codes"] @ weight
    return Translation(name, (Term(Codes(site, a), weight.float()),), bias.float())


def coefficients(
    graph: Candidates, width: int, fit: Moments, deviation_b: Float[Tensor, " features_b"]
) -> Float[Tensor, "features_a features_b"]:
    """C with at most `width` nonzeros per column: ridge of each feature of B on the features of A that correlate most."""
    rows, cols, correlation = _strongest(graph, width)
    weight = torch.zeros(graph.shape, dtype=torch.float64)
    counts = np.bincount(cols, minlength=graph.shape[1])
    product, mean = fit.product("codes", "codes"), fit.means["codes"]
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


def towards_stream(
    start: Float[Tensor, "features_a features_b"], fit: Moments, decoder: Float[Tensor, "features_b d_b"]
) -> Float[Tensor, "features_a features_b"]:
    """C with the nonzeros of `start` that minimises E‖y − b − z C D‖² + λ Σ var(z_i) C_ij². By conjugate gradients."""
    rows, cols = (place.numpy() for place in start.nonzero(as_tuple=True))
    gram, directions = fit.covariance("codes", "codes").numpy(), decoder.numpy()
    variance = gram.diagonal()[rows]
    diagonal = variance * np.square(directions).sum(1)[cols] + RELATIVE_RIDGE * variance

    def along_edges(effect: np.ndarray) -> np.ndarray:
        """For each edge (i, j): row i of `effect` [features of A, d_b] times direction j."""
        parts = [slice(first, first + EDGES) for first in range(0, len(rows), EDGES)]
        return np.concatenate([np.einsum("ed,ed->e", effect[rows[part]], directions[cols[part]]) for part in parts])

    def product(values: np.ndarray) -> np.ndarray:
        written = sp.csr_array((values, (rows, cols)), shape=start.shape) @ directions
        return along_edges(gram @ written) + RELATIVE_RIDGE * variance * values

    size = (len(rows), len(rows))
    values, _ = cg(
        LinearOperator(size, matvec=product, dtype=np.float64),
        along_edges(fit.covariance("codes", "target").numpy()),
        x0=start.numpy()[rows, cols],
        rtol=PRECISION,
        maxiter=ITERATIONS,
        M=LinearOperator(size, matvec=lambda values: values / diagonal, dtype=np.float64),
    )
    found = torch.zeros_like(start)
    found[rows, cols] = torch.from_numpy(values)
    return found


def _strongest(graph: Candidates, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every feature of B the `width` edges with the highest positive correlation, ordered by feature of B."""
    order = np.lexsort((-graph.correlation, graph.cols))
    order = order[graph.correlation[order] > 0]
    cols = graph.cols[order]
    rank = np.arange(len(cols)) - np.searchsorted(cols, cols)
    kept = order[rank < width]
    return graph.rows[kept], graph.cols[kept], graph.correlation[kept]
