"""Sparse, readable translations: which basis needs the fewest nonzeros? One JSON line per seed and direction.

A translation that a person reads is a short list of edges: this feature of A writes that feature of B, with this weight. Each row
has a basis on either side, found without pairs, and N nonzero weights between them, found on paired tokens:

  sae        features of both SAEs; the m best-correlated of A for every feature of B (`cross_code`), N = m · features of B
  untrained  the same with dictionaries that were never trained: random directions at the SAEs' sparsity
  pca        principal components of both streams, the N entries of the ridge map that bring most, refitted
  neurons    the streams' own coordinates, in the same way

`dense` is ridge with all its entries. Bases are not counted, as they are given before the map is.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from _pair import DIRECTIONS, Pair, prepare, row
from torch import Tensor

from matching.graph import candidates
from matching.statistics import feature_moments
from sae.null import untrained
from sae.types import Dictionary
from stitch.features import sparse_codes
from stitch.translation import cross_code
from stitch.translation.moments import Moments, accumulate
from stitch.translation.ridge import ridge
from stitch.translation.types import Residual, Term, Translation

PARTNERS = (1, 2, 4, 8, 16)  # m
CHUNK = 2048


def moments(pair: Pair, split: str, a: Dictionary) -> Moments:
    """Of x, codes of `a` and the target."""
    chunks = (
        {"x": x.float(), "codes": sparse_codes(a, x.float()), "target": y.float()}
        for x, y, _ in pair.paired[split].chunks(CHUNK)
    )
    pairs = [("x", "x"), ("codes", "codes"), ("codes", "x"), ("codes", "target"), ("x", "target"), ("target", "target")]
    return accumulate(chunks, pairs, {"codes"})


def through_dictionaries(pair: Pair, a: Dictionary, b: Dictionary, fit: Moments, seed: int) -> dict[int, Translation]:
    """For every m, the sparse cross-code from dictionary `a` to `b`."""

    def stream():
        for x, y, _ in pair.paired["fit"].chunks(CHUNK):
            yield sparse_codes(a, x.float()), sparse_codes(b, y.float())

    moments_a, moments_b = feature_moments(stream), feature_moments(stream)
    moments_a, moments_b = moments_a[0], moments_b[1]
    graph = candidates(
        stream, moments_a, moments_b, generator=np.random.default_rng(seed), top=max(PARTNERS), budget_bytes=2**28
    )
    deviation = torch.from_numpy(np.sqrt(moments_b.variance))
    found = {}
    for m in PARTNERS:
        weight = cross_code.coefficients(graph, m, fit, deviation)
        found[int((weight != 0).sum())] = cross_code.translation(
            "cross-code", cross_code.CrossCode(weight, m, 0.0), a, b, pair.paired["fit"].site_a, fit
        )
    return found


def sparse_affine(fit: Moments, dense: Tensor, basis_a: Tensor, basis_b: Tensor, entries: int) -> tuple[Tensor, Tensor]:
    """Ridge of B's coordinates in `basis_b` on A's in `basis_a` (orthonormal columns) with `entries` nonzeros, and its bias."""
    gram = basis_a.T @ fit.covariance("x", "x") @ basis_a
    cross = basis_a.T @ fit.covariance("x", "target") @ basis_b
    inside = basis_a.T @ dense @ basis_b
    gain = gram.diagonal()[:, None] * inside.square()  # variance that an entry brings
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
    return whole, fit.mean("target") - fit.mean("x") @ whole


def principal(moments: Moments, name: str) -> Tensor:
    return torch.linalg.eigh(moments.covariance(name, name)).eigenvectors


def run(direction: str, seed: int, tokens: int, held_out: int, work: Path) -> dict:
    pair = prepare(direction, seed=seed, tokens=tokens, held_out=held_out, work=work)
    fit_pair, saes = pair.paired["fit"], pair.saes
    site = fit_pair.site_a
    fit, held = moments(pair, "fit", saes.a), moments(pair, "sweep", saes.a)
    dense = ridge(fit, held, ("x",)).weights["x"]
    bias = fit.mean("target") - fit.mean("x") @ dense
    rows = {"dense": Translation("dense", (Term(Residual(site), dense.float()),), bias.float())}
    sizes = {}
    found = through_dictionaries(pair, saes.a, saes.b, fit, seed)
    counts = list(found)
    for m, (count, translation) in zip(PARTNERS, found.items(), strict=True):
        rows[f"sae, m={m}"], sizes[f"sae, m={m}"] = translation, count

    x, y, _ = fit_pair.shard(0)
    generator = torch.Generator().manual_seed(seed)
    random = {}
    for side, sample, trained in (("a", x, saes.quality_a), ("b", y, saes.quality_b)):
        config = {"a": saes.config_a, "b": saes.config_b}[side]
        width = {"a": saes.a, "b": saes.b}[side].encoder.shape[1]
        random[side] = untrained(replace(config, features=width, k=round(trained.l0)), sample.float(), generator)
    own = moments(pair, "fit", random["a"])
    for m, (count, translation) in zip(
        PARTNERS, through_dictionaries(pair, random["a"], random["b"], own, seed).items(), strict=True
    ):
        rows[f"untrained, m={m}"], sizes[f"untrained, m={m}"] = translation, count
    bases = {
        "pca": (principal(fit, "x"), principal(fit, "target")),
        "neurons": (torch.eye(len(dense), dtype=torch.float64), torch.eye(dense.shape[1], dtype=torch.float64)),
    }
    for name, (basis_a, basis_b) in bases.items():
        for m, count in zip(PARTNERS, counts, strict=True):
            weight, bias = sparse_affine(fit, dense, basis_a, basis_b, count)
            rows[f"{name}, m={m}"] = Translation(name, (Term(Residual(site), weight.float()),), bias.float())
            sizes[f"{name}, m={m}"] = min(count, dense.numel())
    scores = pair.scores(rows)
    sizes["dense"] = dense.numel()
    against = [(f"sae, m={m}", f"{other}, m={m}") for m in PARTNERS for other in ("untrained", "pca", "neurons")]
    return {
        "benchmark": "readable", "direction": direction, "seed": seed, "tokens": fit_pair.tokens,
        "results": [{**row(scores, name), "nonzeros": sizes.get(name)} for name in scores],
        "differences": [row(scores, name, other) for name, other in against],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--direction", action="append", choices=DIRECTIONS)
    parser.add_argument("--tokens", type=int, default=300_000)
    parser.add_argument("--held-out", type=int, default=16_384)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks"))
    arguments = parser.parse_args()
    for seed in range(arguments.seeds):
        for direction in arguments.direction or DIRECTIONS:
            result = run(direction, seed, arguments.tokens, arguments.held_out, arguments.work)
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
