"""How often "95 %" intervals over documents contain the truth. One JSON line per population, sizes and number of documents.

The population is the documents of both held-out splits of the default corpus: `demo:gpt2`'s nats, and the paired
differences to it of `demo:llama` and of an affine composite (gpt2.3 → llama.4), all measured on every token and kept in
build/benchmarks. `skewed` has log-normal differences per document (σ = 1) instead, with the same sizes. A trial draws
documents with replacement and compares the interval with the value of the population. With `whole` sizes a document
counts with all its tokens; with `windows` one in eight of its windows is read, as in a report at default settings, and
documents without any are replaced by others.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stitch.evaluation.intervals import effective_number, ratio_interval

DOCUMENTS = (12, 30, 100)
SIZES = {"whole": 1.0, "windows": 1 / 8}  # the share of a document's windows that is read
RESAMPLES = 1000
ROWS = ("gpt2", "llama", "composite")


def measured(work: Path) -> dict[str, Tensor]:
    """Of every piece of a document within a window: `document`, `tokens`, and nats by row."""
    path = work / "intervals.pt"
    if not path.exists():
        work.mkdir(parents=True, exist_ok=True)
        torch.save(_measure(work), path)
    return torch.load(path)


def _measure(work: Path) -> dict[str, Tensor]:
    from stitch.evaluation.scores import evaluate, whole_model
    from stitch.layers.cells import score_cells
    from stitch.layers.streams import Cell, Side, harvest_all
    from stitch.models.loading import load
    from stitch.models.model import Model
    from stitch.models.sources import resolve
    from stitch.text.corpus import cached_documents
    from stitch.text.documents import select
    from stitch.text.windows import Windows, pack

    first, second = (load(resolve(name).folder, name=name) for name in ("demo:gpt2", "demo:llama"))
    models: dict[Side, Model] = {"a": first, "b": second}
    memory, context, tokenizer = 4 * 2**30, models["a"].longest, models["a"].tokenizer
    documents = cached_documents()
    packed = pack([*select(documents, "sweep"), *select(documents, "report")], tokenizer, context)
    # Each piece of a document within a window becomes a "document", so that scores come by piece.
    places = torch.arange(len(packed.ids))[:, None] * (int(packed.document.max()) + 1) + packed.document
    pieces, index = places.unique(return_inverse=True)
    by_piece = Windows(packed.ids, index)
    fit = pack(select(documents, "fit"), tokenizer, context, 100_000)
    sites: dict[Side, Sequence[int]] = {"a": [3], "b": [4]}
    harvests = {
        name: harvest_all(models, windows, sites, work / f"intervals-{name}", memory)
        for name, windows in (("fit", fit), ("sweep", by_piece))
    }
    cell = Cell("a", 3, "b", 4)
    rows = score_cells(models, [cell], harvests["fit"], {"sweep": harvests["sweep"]}, reference=None, memory=memory)
    whole = {"gpt2": whole_model(models["a"].net), "llama": whole_model(models["b"].net)}
    scores = evaluate(whole, by_piece, vocabulary=models["a"].config.vocab_size)
    scores["composite"] = rows.rows[cell]["affine"].scores["sweep"]
    documents = pieces % (int(packed.document.max()) + 1)
    return {"document": documents, "tokens": scores["gpt2"].tokens, **{row: scores[row].nats for row in ROWS}}


@dataclass(frozen=True)
class Population:
    """Pieces of documents in the order of their documents: tokens, and nats by name. Document d has pieces `ends[d − 1]` to
    `ends[d]`."""

    tokens: Float[Tensor, " pieces"]
    nats: dict[str, Float[Tensor, " pieces"]]
    ends: Int[Tensor, " documents"]

    def draw(self, documents: int, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Sums of the nats [names, documents] and of the tokens [documents] of documents drawn with replacement, of whose
        pieces a `share` is read. Documents without any are replaced by the next ones drawn."""
        lengths = self.ends.diff(prepend=torch.zeros(1, dtype=torch.long))
        drawn = torch.randint(len(self.ends), (documents if share == 1 else 20 * documents,), generator=generator)
        owner = torch.repeat_interleave(torch.arange(len(drawn)), lengths[drawn])
        before = lengths[drawn].cumsum(0) - lengths[drawn]
        pieces = torch.arange(len(owner)) - before[owner] + (self.ends - lengths)[drawn][owner]
        read = torch.rand(len(pieces), generator=generator) < share
        values = torch.stack([self.tokens, *self.nats.values()])[:, pieces[read]]
        sums = torch.zeros(len(values), len(drawn), dtype=values.dtype).index_add_(1, owner[read], values)
        sums = sums[:, sums[0] > 0][:, :documents]
        assert sums.shape[1] == documents
        return sums[1:], sums[0]


def population(work: Path) -> Population:
    found = measured(work)
    order = found["document"].argsort(stable=True)
    _, lengths = found["document"].unique(return_counts=True)
    ends, tokens = lengths.cumsum(0), found["tokens"][order]
    nats = {row: found[row][order] for row in ROWS}
    skew = torch.randn(len(ends), generator=torch.Generator().manual_seed(0), dtype=torch.float64).exp()
    return Population(
        tokens,
        {
            "gpt2": nats["gpt2"],
            "llama − gpt2": nats["llama"] - nats["gpt2"],
            "composite − gpt2": nats["composite"] - nats["gpt2"],
            "skewed": tokens * skew.repeat_interleave(lengths),
        },
        ends,
    )


def resampled(
    sums: Float[Tensor, " documents"], counts: Float[Tensor, " documents"], generator: torch.Generator
) -> dict[str, tuple[float, float]]:
    """Two intervals from the same resampled documents: percentiles, which reports showed before, and the bootstrap-t."""
    draws = torch.randint(len(sums), (RESAMPLES, len(sums)), generator=generator)
    ratio, error = _ratio_and_error(sums[None], counts[None])
    ratios, errors = _ratio_and_error(sums[draws], counts[draws])
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = ratios.quantile(ends).tolist()
    small, large = ((ratios - ratio) / errors.clamp_min(1e-12)).quantile(ends)
    return {
        "percentile": (low, high),
        "bootstrap-t": (float(ratio - large * error), float(ratio - small * error)),
    }


def _ratio_and_error(
    sums: Float[Tensor, "draws documents"], counts: Float[Tensor, "draws documents"]
) -> tuple[Float[Tensor, " draws"], Float[Tensor, " draws"]]:
    """Ratios and their standard errors by linearisation."""
    totals, documents = counts.sum(1), counts.shape[1]
    ratios = sums.sum(1) / totals
    residuals = (sums - ratios[:, None] * counts) / totals[:, None]
    return ratios, (residuals.square().sum(1) * documents / (documents - 1)).sqrt()


def coverage(found: Population, sizes: str, documents: int, trials: int) -> Iterator[dict]:
    """A line per population."""
    generator = torch.Generator().manual_seed(documents)
    truth = {name: float(nats.sum() / found.tokens.sum()) for name, nats in found.nats.items()}
    intervals: dict[str, dict[str, list[tuple[float, float]]]] = {
        name: {"percentile": [], "bootstrap-t": [], "jackknife": []} for name in found.nats
    }
    effective = []
    for _ in range(trials):
        sums, tokens = found.draw(documents, SIZES[sizes], generator)
        effective.append(effective_number(tokens))
        for name, nats in zip(found.nats, sums, strict=True):
            found_here = {**resampled(nats, tokens, generator), "jackknife": ratio_interval(nats, tokens)}
            for method, interval in found_here.items():
                intervals[name][method].append(interval)
    for name, by_method in intervals.items():
        line = {
            "benchmark": "intervals", "population": name, "sizes": sizes, "documents": documents, "trials": trials,
            "effective": sum(effective) / trials, "truth": truth[name],
        }  # fmt: skip
        for method, pairs in by_method.items():
            low, high = torch.tensor(pairs, dtype=torch.float64).T
            share = float(((low <= truth[name]) & (truth[name] <= high)).double().mean())
            line[method] = {
                "covered": share,
                "error": (share * (1 - share) / trials) ** 0.5,
                "too_high": float((low > truth[name]).double().mean()),
                "too_low": float((high < truth[name]).double().mean()),
                "median_width": float((high - low).median()),
            }
        yield line


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=3000)
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks"))
    given = parser.parse_args()
    found = population(given.work)
    for sizes in SIZES:
        for documents in DOCUMENTS:
            for line in coverage(found, sizes, documents, given.trials):
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
