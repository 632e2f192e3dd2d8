"""Does A's stream add anything to a B that keeps its own tables? One JSON line per direction and depth of the tables.

    python benchmarks/beside_tables.py > build/beside_tables.jsonl

B runs with its first K blocks as n-gram tables (`reference:own-tables`). Where its stream enters block L, A's stream of block M
is added: ridge on both streams towards B's own. A is thus an input beside B's tables, not in their place. Every K, L and M is
scored on the sweep split; for each K the L and M are kept that are furthest ahead of the best alternative with no more FLOPs,
which is B or A, whole or with tables of any depth. Lines hold losses on the report split, with paired differences to

    alternative     the best alternative with no more FLOPs, chosen on the sweep split
    dearer          the cheapest alternative with more FLOPs that is better on the sweep split
    tables          the same tables without A
    refitted        ridge on the stream behind the tables alone: what the second fit gives without A
    own blocks      as many first blocks of B in the place of A's
    null            A's stream of the window before

Tables are not packed, so that every number of blocks has tables of the same size.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from stitch.activations.harvest import harvest
from stitch.composite.compose import late_half, late_logits, streams_from
from stitch.composite.costs import Cost, early, late, of_translation, whole
from stitch.config import Settings
from stitch.conversions.ngrams.late import LateBlocks
from stitch.evaluation.scores import Batch, Logits, Scores, evaluate, whole_model
from stitch.frontier.alternative import Means
from stitch.frontier.own_tables import fitted_tables
from stitch.jobs.pair.models import load_pair
from stitch.jobs.pair.settings import complete
from stitch.jobs.pair.text import read_windows
from stitch.models.model import Model
from stitch.regression.moments import Moments, accumulate
from stitch.regression.ridge import Ridge, ridge
from stitch.text.documents import Split
from stitch.text.windows import Windows
from stitch.translation.groups import needed
from stitch.translation.module import embeddings_of, unfolded_module
from stitch.translation.types import Translation

DIRECTIONS = (("demo:gpt2", "demo:llama"), ("demo:llama", "demo:gpt2"))
Streams = dict[Split, dict[int, Tensor]]  # by site: [windows, context, width]


@dataclass(frozen=True)
class Row:
    name: str
    cost: Cost
    logits: dict[Split, Logits]


Controls = Callable[[], list[Row]]


@dataclass(frozen=True)
class Setting:
    a: Model
    b: Model
    windows: dict[Split, Windows]
    context: int
    streams_a: Streams
    streams_b: Streams

    def score(self, rows: list[Row], split: Split) -> dict[str, Scores]:
        windows = self.windows[split]
        part = range(len(windows.ids) // 2) if split == "sweep" else None  # to choose from, half is enough
        return evaluate({row.name: row.logits[split] for row in rows}, windows, vocabulary=self.b.vocabulary, part=part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=100_000)
    given = parser.parse_args()
    for a_name, b_name in DIRECTIONS:
        settings = Settings(model_a=a_name, model_b=b_name, layer=3, tokens=given.tokens)
        a, b, _ = load_pair(settings)
        settings = complete(settings, a, b)
        windows = read_windows(settings, a, b)
        with tempfile.TemporaryDirectory() as folder:
            means = Means(
                limit=whole(b, settings.context), windows=windows, context=settings.context, ngrams=settings.ngrams, routes=0,
                seed=0, memory=settings.memory, scratch=Path(folder) / "alternatives",
            )  # fmt: skip
            streams = [read(model, windows, Path(folder) / str(number)) for number, model in enumerate((a, b))]
            for line in lines(Setting(a, b, windows, settings.context, *streams), means):
                print(json.dumps(line), flush=True)


def read(model: Model, windows: dict[Split, Windows], folder: Path, sites: Sequence[int] | None = None) -> Streams:
    """The streams at `sites`; None: at all inner ones."""
    streams: Streams = {}
    for split, some in windows.items():
        found = harvest(model, some, range(1, model.depth) if sites is None else sites, folder / split)
        streams[split] = {site: found.all(site) for site in found.sites}
    return streams


def tables_of(model: Model, means: Means) -> dict[int, Translation]:
    """Tables in the place of the first 1, 2, … blocks."""
    found = {}
    for site in range(1, model.depth):
        found[site] = fitted_tables(model, site, means)
        assert found[site] is not None, "the budget of memory holds the tables of the embedded models"
    return found


def lines(setting: Setting, means: Means) -> Iterator[dict]:
    a, b = setting.a, setting.b
    tables = {model.name: tables_of(model, means) for model in (a, b)}
    alternatives = [alternative for model in (a, b) for alternative in alone(model, tables[model.name], setting)]
    swept = setting.score(alternatives, "sweep")
    for site, found in tables[b.name].items():
        behind: Streams = {split: behind_tables(b, site, found, some) for split, some in setting.windows.items()}
        cells = list(added(setting, site, found, behind))
        scores = setting.score([cell for cell, _ in cells], "sweep")

        def rival(cell: Row) -> Row:
            cheap = [one for one in alternatives if one.cost.flops <= cell.cost.flops]
            return min(cheap, key=lambda one: swept[one.name].ce)

        def ahead(item: tuple[Row, Controls], scores: dict[str, Scores] = scores) -> float:
            return swept[rival(item[0]).name].ce - scores[item[0].name].ce

        best, controls = max(cells, key=ahead)
        same = next(one for one in alternatives if one.name == f"{b.name} {site}")
        dearer = min(
            (
                one
                for one in alternatives
                if one.cost.flops > best.cost.flops and swept[one.name].ce < scores[best.name].ce
            ),
            key=lambda one: one.cost.flops,
        )
        others = {"alternative": rival(best), "dearer": dearer, "tables": same, **{one.name: one for one in controls()}}
        report = setting.score([best, *{one.name: one for one in others.values()}.values()], "report")
        print(f"{a.name} → {b.name}, tables for {site}: {best.name}", file=sys.stderr)
        yield {
            "benchmark": "beside_tables", "source": a.name, "target": b.name, "blocks": site, "cells": len(cells),
            "documents": report[best.name].documents, "tokens": setting.windows["report"].tokens,
            "fitted": setting.windows["fit"].tokens, "kept": best.name,
            "rival": others["alternative"].name, "next": dearer.name,
            **described(report[best.name], best),
            **{name: described(report[one.name], one, report[best.name]) for name, one in others.items()},
        }  # fmt: skip


def alone(model: Model, tables: dict[int, Translation], setting: Setting) -> Iterator[Row]:
    """The model, whole and with its first blocks as tables."""
    untouched = whole_model(model.net)
    yield Row(f"{model.name} 0", whole(model, setting.context), dict.fromkeys(setting.windows, untouched))
    for site, found in tables.items():
        logits = LateBlocks(model, site).reading(found)
        yield Row(f"{model.name} {site}", tabled(model, site, found, setting), dict.fromkeys(setting.windows, logits))


def tabled(model: Model, site: int, tables: Translation, setting: Setting) -> Cost:
    return of_translation(tables, model, model, site) + late(model, site, setting.context)


@torch.no_grad()
def behind_tables(model: Model, site: int, tables: Translation, windows: Windows) -> dict[int, Tensor]:
    """The streams of a model whose first blocks are tables, at every site from `site` on."""
    module, embeddings = unfolded_module(tables, model, model, site), embeddings_of(model, model)
    later, sites = streams_from(model, site), range(site, model.depth)
    assert later is not None, "the embedded models can be cut"
    found: dict[int, list[Tensor]] = {one: [] for one in sites}
    for ids in windows.ids.long().split(16):
        positions = torch.arange(ids.shape[1]).expand_as(ids)
        for one, stream in later(module({}, ids, positions, embeddings=embeddings), sites).items():
            found[one].append(stream)
    return {one: torch.cat(parts) for one, parts in found.items()}


def added(setting: Setting, site: int, tables: Translation, behind: Streams) -> Iterator[tuple[Row, Controls]]:
    """For every L and M the row with A's stream and, to be compared with it, rows without one and with that of other text."""
    a, b = setting.a, setting.b
    cost = tabled(b, site, tables, setting)
    for there in range(site, b.depth):
        half = late_half(b, there)
        own = {split: streams[there] for split, streams in behind.items()}
        target = {split: streams[there] for split, streams in setting.streams_b.items()}

        def row(
            name: str, inputs: dict[str, dict[Split, Tensor]], more: Cost, half=half, own=own, target=target
        ) -> Row:
            found = fitted(inputs, target)
            logits = {split: through(half, found, inputs, own, split) for split in own}
            return Row(name, cost + more + matrix(found), logits)

        for here in range(1, a.depth):
            of_a: dict[Split, Tensor] = {split: streams[here] for split, streams in setting.streams_a.items()}
            of_source = early(a, here, setting.context)

            def controls(row=row, here=here, own=own, of_a=of_a, of_source=of_source) -> list[Row]:
                other: dict[Split, Tensor] = {split: stream.roll(1, 0) for split, stream in of_a.items()}
                own_site = min(here, b.depth - 1)
                of_b: dict[Split, Tensor] = {split: streams[own_site] for split, streams in setting.streams_b.items()}
                return [
                    row("refitted", {"own": own}, Cost(0, 0, 0, 0)),
                    row("own blocks", {"own": own, "b": of_b}, early(b, own_site, setting.context)),
                    row("null", {"own": own, "a": other}, of_source),
                ]

            yield row(f"{here} → {there}", {"own": own, "a": of_a}, of_source), controls


def fitted(inputs: dict[str, dict[Split, Tensor]], target: dict[Split, Tensor]) -> Ridge:
    """Ridge on all tokens but BOS."""

    def moments(split: Split) -> Moments:
        named = {**{name: streams[split] for name, streams in inputs.items()}, "target": target[split]}
        chunks = zip(*(stream[:, 1:].split(32) for stream in named.values()), strict=True)
        return accumulate(
            ({name: part.flatten(0, 1) for name, part in zip(named, chunk, strict=True)} for chunk in chunks),
            needed(tuple(inputs)),
        )

    return ridge(moments("fit"), moments("sweep"), tuple(inputs))


def matrix(found: Ridge) -> Cost:
    numbers = sum(weight.numel() for weight in found.weights.values())
    return Cost(2.0 * numbers, numbers, 4 * numbers, 4 * numbers)


def through(
    half, found: Ridge, inputs: dict[str, dict[Split, Tensor]], own: dict[Split, Tensor], split: Split
) -> Logits:
    weights = {name: weight.float() for name, weight in found.weights.items()}

    def logits(batch: Batch) -> Tensor:
        hidden = found.bias.float() + sum(inputs[name][split][batch.rows] @ weight for name, weight in weights.items())
        hidden[:, 0] = own[split][batch.rows][:, 0]  # BOS has no context
        return late_logits(half, hidden, ids=batch.ids)

    return logits


def described(scores: Scores, row: Row, minus_of: Scores | None = None) -> dict:
    """Loss and cost of a row; `ahead` is by how much the row with A is below this one, paired."""
    low, high = scores.interval()
    found = {
        "ce": scores.ce,
        "ce_low": low,
        "ce_high": high,
        "flops_m": row.cost.flops / 1e6,
        "bytes_m": row.cost.bytes / 1e6,
    }
    if minus_of is not None:
        low, high = minus_of.interval(minus=scores)
        found |= {"behind": minus_of.ce - scores.ce, "behind_low": low, "behind_high": high}
    return found


if __name__ == "__main__":
    main()
