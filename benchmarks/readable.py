"""Sparse, readable translations: which basis needs the fewest nonzero weights? One JSON line per seed and direction.

A translation that a person can read is a short list of edges: this feature of A writes that feature of B, with this
weight. Each row has a basis on each side, found without pairs, and N nonzero weights between them, fitted on paired
tokens:

    sae        features of both SAEs; the m best-correlated of A for every feature of B (`cross_code`), N = m · features of B
    shuffled   the same number of edges with the features of B permuted: the control for the matching
    untrained  dictionaries that were never trained: random directions at the SAEs' sparsity
    exemplars  dictionaries of single tokens' activations, as sparse as the SAEs
    pca        principal components of both streams, and the N entries of the ridge map that explain the most variance
    neurons    the streams' own coordinates, with entries chosen in the same way

random-relu → pca, rbf → pca and sae-codes → pca map a nonlinear basis of A to B's principal components, with entries
chosen greedily. `dense` is ridge with all its entries. Bases are not counted in N, since they are given before the map
is fitted.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from _pair import Pair, prepare, print_lines, row
from torch import Tensor

from matching.correlations import Correlations
from matching.graph import candidates
from sae.null import untrained
from sae.types import Dictionary
from stitch.features.codes import sparse_codes
from stitch.regression.moments import Moments, accumulate
from stitch.regression.ridge import ridge
from stitch.text.documents import Split
from stitch.translation import cross_code, lifts
from stitch.translation.types import Codes, Residual, Term, Translation

PARTNERS = (1, 2, 4, 8, 16)  # values of m
CHUNK = 2048
ROUNDS = 4
BASES = (
    *("sae", "shuffled", "untrained", "exemplars", "pca", "neurons"),
    *("random-relu → pca", "rbf → pca", "sae-codes → pca"),
)


def moments(pair: Pair, split: Split, a: Dictionary) -> Moments:
    """Moments of x, of the codes of `a`, and of the target."""
    chunks = (
        {"x": x.float(), "codes": sparse_codes(a, x.float()), "target": y.float()}
        for x, y, _ in pair.paired[split].chunks(CHUNK)
    )
    pairs = [("x", "x"), ("codes", "codes"), ("codes", "x"), ("codes", "target"), ("x", "target"), ("target", "target")]
    return accumulate(chunks, pairs, {"codes"})


def edges(
    pair: Pair, a: Dictionary, b: Dictionary, fit: Moments, seed: int, *, shuffle: bool = False
) -> Iterator[tuple[int, Tensor]]:
    """For every m, weights from codes of `a` to codes of `b`: for each feature of B the m best-correlated features
    of A.
    """

    def stream():
        for x, y, _ in pair.paired["fit"].chunks(CHUNK):
            yield sparse_codes(a, x.float()), sparse_codes(b, y.float())

    generator = np.random.default_rng(seed)
    correlations = Correlations.read(stream)
    graph = candidates(correlations, generator=generator, top=max(PARTNERS))
    deviation = torch.from_numpy(np.sqrt(correlations.moments_b.variance))
    order = torch.from_numpy(generator.permutation(graph.shape[1]))
    for m in PARTNERS:
        weight = cross_code.coefficients(graph, m, fit, deviation)
        yield m, weight[:, order] if shuffle else weight


def through_dictionaries(
    pair: Pair, a: Dictionary, b: Dictionary, fit: Moments, seed: int, *, shuffle: bool = False
) -> dict[int, tuple[int, Translation]]:
    """For every m, the number of nonzero weights and the sparse cross-code from dictionary `a` to `b`."""
    found = {}
    for m, start in edges(pair, a, b, fit, seed, shuffle=shuffle):
        weight = cross_code.towards_stream(start, fit, b.decoder.double())
        translation = cross_code.translation(
            "cross-code", cross_code.CrossCode(weight, m, 0.0), a, b, pair.paired["fit"].site_a, fit
        )
        found[m] = int((weight != 0).sum()), translation
    return found


def sparse_affine(fit: Moments, dense: Tensor, basis_a: Tensor, basis_b: Tensor, entries: int) -> tuple[Tensor, Tensor]:
    """Ridge from A's coordinates in `basis_a` to B's in `basis_b` (orthonormal columns) with `entries` nonzero
    weights, and its bias.
    """
    gram = basis_a.T @ fit.covariance("x", "x") @ basis_a
    cross = basis_a.T @ fit.covariance("x", "target") @ basis_b
    inside = basis_a.T @ dense @ basis_b
    gain = gram.diagonal()[:, None] * inside.square()  # variance that each entry explains
    kept = torch.zeros_like(gain, dtype=torch.bool).flatten()
    kept[gain.flatten().topk(min(entries, gain.numel())).indices] = True
    kept = kept.view_as(gain)
    weight = torch.zeros_like(inside)
    for column in range(inside.shape[1]):
        rows = kept[:, column].nonzero()[:, 0]
        if len(rows):
            own = gram[rows][:, rows]
            own = own + 1e-6 * gram.diagonal().mean() * torch.eye(len(rows), dtype=own.dtype)
            weight[rows, column] = torch.linalg.solve(own, cross[rows, column])
    whole = basis_a @ weight @ basis_b.T
    return whole, fit.means["target"] - fit.means["x"] @ whole


def into_components(pair: Pair, a: Dictionary, entries: dict[int, int]) -> dict[int, tuple[int, Translation]]:
    """For every m, a map with the given number of weights from codes of `a` to B's principal components.

    Codes correlate, so the best weights are not known in closed form: each of ROUNDS adds the weights that explain most
    of the residual, and all are refitted.
    """
    chunks = ({"codes": a.encode(x.float()), "target": y.float()} for x, y, _ in pair.paired["fit"].chunks(CHUNK))
    fit = accumulate(chunks, [("codes", "codes"), ("codes", "target"), ("target", "target")], {"codes"})
    gram, basis = fit.covariance("codes", "codes"), principal(fit, "target")
    cross, variance = fit.covariance("codes", "target") @ basis, gram.diagonal().clamp_min(1e-12)
    found = {}
    for m, count in entries.items():
        kept, weight = torch.zeros_like(cross, dtype=torch.bool), torch.zeros_like(cross)
        for _ in range(ROUNDS):
            gain = (cross - gram @ weight).square() / variance[:, None]
            gain[kept] = -1
            kept.view(-1)[gain.flatten().topk(count // ROUNDS).indices] = True
            for column in range(cross.shape[1]):
                rows = kept[:, column].nonzero()[:, 0]
                own = gram[rows][:, rows] + 1e-3 * torch.diag(variance[rows])
                weight[rows, column] = torch.linalg.solve(own, cross[rows, column])
        whole = weight @ basis.T
        bias = fit.means["target"] - fit.means["codes"] @ whole
        term = Term(Codes(pair.paired["fit"].site_a, a), whole.float())
        found[m] = int(kept.sum()), Translation("codes", (term,), bias.float())
    return found


def principal(moments: Moments, name: str) -> Tensor:
    return torch.linalg.eigh(moments.covariance(name, name)).eigenvectors


def null(name: str, pair: Pair, side: str, seed: int) -> Dictionary:
    """An untrained dictionary for one side's stream, as wide and as sparse as the side's SAE."""
    x, y, _ = pair.paired["fit"].shard(0)
    sample, trained, quality, config = {
        "a": (x, pair.saes.a, pair.saes.quality_a, pair.saes.config_a),
        "b": (y, pair.saes.b, pair.saes.quality_b, pair.saes.config_b),
    }[side]
    features, k = trained.encoder.shape[1], round(quality.l0)
    generator = torch.Generator().manual_seed(seed)
    if name == "exemplars":
        return lifts.exemplars(sample.float(), features, k, generator)
    if name in ("random-relu", "rbf"):
        make = lifts.rbf if name == "rbf" else lifts.random_relu
        return make(sample.float(), features, generator)
    return untrained(replace(config, features=features, k=k), sample.float(), generator)


def run(direction: str, seed: int, tokens: int, held_out: int, work: Path) -> dict:
    pair = prepare(direction, seed=seed, tokens=tokens, held_out=held_out, work=work)
    fit_pair, saes = pair.paired["fit"], pair.saes
    site = fit_pair.site_a
    fit, held = moments(pair, "fit", saes.a), moments(pair, "sweep", saes.a)
    dense = ridge(fit, held, ("x",)).weights["x"]
    bias = fit.means["target"] - fit.means["x"] @ dense
    rows = {"dense": Translation("dense", (Term(Residual(site), dense.float()),), bias.float())}
    sizes = {"dense": dense.numel()}

    def add(name: str, found: dict[int, tuple[int, Translation]]) -> None:
        for m, (count, translation) in found.items():
            rows[f"{name}, m={m}"], sizes[f"{name}, m={m}"] = translation, count

    add("sae", through_dictionaries(pair, saes.a, saes.b, fit, seed))
    add("shuffled", through_dictionaries(pair, saes.a, saes.b, fit, seed, shuffle=True))
    for name in ("untrained", "exemplars"):
        a, b = (null(name, pair, side, seed) for side in "ab")
        add(name, through_dictionaries(pair, a, b, moments(pair, "fit", a), seed))
    counts = {m: sizes[f"sae, m={m}"] for m in PARTNERS}
    for name in ("random-relu", "rbf", "sae-codes"):
        a = saes.a if name == "sae-codes" else null(name, pair, "a", seed)
        add(f"{name} → pca", into_components(pair, a, counts))
    bases = {
        "pca": (principal(fit, "x"), principal(fit, "target")),
        "neurons": (torch.eye(len(dense), dtype=torch.float64), torch.eye(dense.shape[1], dtype=torch.float64)),
    }
    for name, (basis_a, basis_b) in bases.items():
        for m in PARTNERS:
            count = counts[m]
            weight, bias = sparse_affine(fit, dense, basis_a, basis_b, count)
            rows[f"{name}, m={m}"] = Translation(name, (Term(Residual(site), weight.float()),), bias.float())
            sizes[f"{name}, m={m}"] = min(count, dense.numel())
    scores = pair.scores(rows)
    against = [(f"sae, m={m}", f"{other}, m={m}") for m in PARTNERS for other in BASES[1:]]
    against += [(f"sae, m={m}", "dense") for m in PARTNERS]
    return {
        "benchmark": "readable", "direction": direction, "seed": seed, "tokens": fit_pair.tokens,
        "documents": scores["b"].documents,
        "results": [{**row(scores, name), "nonzeros": sizes.get(name)} for name in scores],
        "differences": [row(scores, name, other) for name, other in against],
    }  # fmt: skip


if __name__ == "__main__":
    print_lines(run, tokens=200_000)
