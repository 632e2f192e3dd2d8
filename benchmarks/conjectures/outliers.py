"""Conjecture: sites with outlier channels are bad sites to cut.

    python benchmarks/conjectures/outliers.py

At every site the outlier statistics of `stitch inspect --sites`, and what it costs to leave out the two blocks behind it: as
they are (`cut`), and bridged by a refitted down projection (`bridged`). Measure: Spearman's correlation over sites, beside
its distribution when the costs are shuffled (10,000 times). The first and last two blocks are left out, as they are costly
anywhere; the demo models have too few sites. Baseline: the site's distance from the middle, which needs no statistics.

Rule, set before the run: holds for a model where the correlation of `bridged` with the top channel's share of the variance,
or with the kurtosis, is above 0 with a two-sided p below 0.05; refuted where both correlations are below 0.2; open otherwise.
"""

import argparse
import tempfile
from pathlib import Path

import _shared
import torch
from scipy.stats import spearmanr

import stitch
from stitch.layers.sites import measure_sites

STATISTICS = ("top_share", "kurtosis", "kurtosis_turned", "first_token", "effective_rank", "read")
EDGE = 2  # blocks at either end
DRAWS = 10_000


def correlation(one: torch.Tensor, other: torch.Tensor) -> dict[str, float]:
    """Spearman's ρ, and the share of shuffles with one as far from 0."""
    generator = torch.Generator().manual_seed(0)
    first, second = (part.argsort().argsort().double() for part in (one, other))
    first, second = first - first.mean(), second - second.mean()
    scale = (first.square().sum() * second.square().sum()).sqrt()
    shuffles = torch.stack([second[torch.randperm(len(second), generator=generator)] for _ in range(DRAWS)])
    null = (shuffles @ first / scale).abs()
    rho = float(spearmanr(one.numpy(), other.numpy()).statistic)
    return {"rho": rho, "p": float((null >= abs(rho) - 1e-12).double().mean())}


def measure(name: str, given: argparse.Namespace) -> None:
    found = _shared.subject(name, context=256, windows=28 if given.small else 112)
    depth = found.model.depth
    sites = measure_sites(found.model, found.windows, range(depth + 1))
    with tempfile.TemporaryDirectory() as folder:
        report = stitch.sweep(
            name, depth=True, lengths=[2], context=128, cache_size=0, out=Path(folder) / "depth", quiet=True
        ).report
    costs = {cell["first"]: cell["sweep_ce"] for cell in report["cells"]}
    kept = [first for first in sorted(costs) if EDGE <= first <= depth - 2 - EDGE]
    whole = report["whole"]["sweep_ce"]
    cost = {
        way: torch.tensor([costs[first][row] - whole for first in kept])
        for way, row in (("cut", "passthrough"), ("bridged", "down-projection"))
    }
    values = {key: torch.tensor([float(sites[first][key]) for first in kept]) for key in STATISTICS}
    values["from_middle"] = torch.tensor([abs(first + 1 - depth / 2) for first in kept])
    rows = [
        {"statistic": key, "cost": way, **correlation(value, one)}
        for key, value in values.items()
        for way, one in cost.items()
    ]
    deciding = [row for row in rows if row["cost"] == "bridged" and row["statistic"] in ("top_share", "kurtosis")]
    if any(row["rho"] > 0 and row["p"] < 0.05 for row in deciding):
        verdict = "holds"
    else:
        verdict = "refuted" if all(row["rho"] < 0.2 for row in deciding) else "open"
    _shared.tell(
        "outliers", name, verdict, rows=rows, cuts=len(kept), sites=sites, tokens=report["tokens"]["sweep"],
        documents=len(found.windows.document.unique()),
        costs=[{"first": first, **{way: float(one[place]) for way, one in cost.items()}} for place, first in enumerate(kept)],
    )  # fmt: skip


if __name__ == "__main__":
    _shared.run(__doc__, ["smollm2"], measure)
