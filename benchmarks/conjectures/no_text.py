"""Conjecture: to fit a translation no text is needed. Text that one of the two models writes itself is as good.

A translation is fitted on (a) windows spread over the fit split of the docstrings, (b) text written by A, (c) text written by
B; nulls are (d) the windows of (a) with the tokens of each document shuffled, (e) uniformly drawn tokens. λ is chosen on other
text of the same kind, as somebody without text would have to. All are scored on the same windows of the report split of the
docstrings, text of people, with paired differences and 95 % intervals over its documents. One JSON line per direction of the
embedded pair, amount of text and seed; a seed draws the written text, the windows of (a), the shuffles and the uniform tokens.

Verdict, set before the first run. A cell is a direction, an amount, a seed and a writer.

- refuted: in any cell, written − real > 0.01 nats with the lower end of the 95 % interval above 0.01;
- upheld: no such cell, and in every cell both nulls are worse than what was written, with the interval above 0;
- otherwise undecided.

    python benchmarks/conjectures/no_text.py > lines.jsonl
    python benchmarks/conjectures/no_text.py --verdict lines.jsonl

Added after the verdict, to look for the reason, and no part of it: `--row` fits another row of the main job, and every line has
a further kind of text, `cut`: passages of people's documents, from random places, as long as the documents that were written and
packed as these are. Written text differs from it in who wrote it, and from (a) also in where documents begin.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from stitch.activations.harvest import Activations, harvest
from stitch.activations.paired import Paired, pair
from stitch.evaluation.scores import Scores, evaluate
from stitch.evaluation.stage import Stage
from stitch.files.store import Store
from stitch.models.loading import load
from stitch.models.model import Model
from stitch.models.sources import resolve
from stitch.models.writer import Writer
from stitch.regression.moments import Variable, accumulate
from stitch.regression.ridge import ridge
from stitch.text.document import Document
from stitch.text.documents import Split, read, select
from stitch.text.tokenizers import bos_of
from stitch.text.windows import Windows, read_for, sample
from stitch.translation import rows
from stitch.translation.available import earlier_sites, free_inputs
from stitch.translation.groups import needed
from stitch.translation.inputs import reach, streams
from stitch.translation.least_squares import from_ridge
from stitch.translation.token_tables import token_tables
from stitch.translation.types import Translation

ROW = "translation:affine+state"  # A's stream, B's state of the token, B's embedding of the one before
SITES = {"demo:gpt2": 3, "demo:llama": 4}  # the same relative depth, so both directions read the same streams
DIRECTIONS = (("demo:gpt2", "demo:llama"), ("demo:llama", "demo:gpt2"))
TOKENS = (10_000, 40_000)
CONTEXT, SWEEP, REPORT = 256, 8_192, 32_768  # tokens
WRITTEN, NULLS = ("by A", "by B"), ("shuffled", "uniform")
MARGIN = 0.01  # nats
LEAST_DOCUMENTS = 100
MEMORY = 2**30  # bytes


@dataclass(frozen=True)
class Bench:
    models: dict[str, Model]
    report: dict[str, Activations]
    folder: Path
    row: rows.Row

    @property
    def tokenizer(self):
        return next(iter(self.models.values())).tokenizer

    def harvested(self, windows: Windows, name: str) -> dict[str, Activations]:
        """The streams of both models at their sites."""
        return {
            model: harvest(
                self.models[model], windows, [*earlier_sites(site), site], self.folder / name / model.partition(":")[2]
            )
            for model, site in SITES.items()
        }

    def texts(self, seed: int) -> Iterator[tuple[str, dict[Split, Windows]]]:
        """Windows to fit on and to choose λ on, by kind of text: `real`, the writer's name, `shuffled`, `uniform`."""
        limits: dict[Split, int] = {"fit": max(TOKENS), "sweep": SWEEP, "report": 0}
        real = {split: self._real(split, limits[split], seed) for split in ("fit", "sweep")}
        yield "real", real
        for name, model in self.models.items():
            corpus = read_for("self", limits, model.tokenizer, CONTEXT, writer=Writer.of(model, seed), store=Store())
            found = {split: select(corpus.documents, split) for split in real}
            yield name, {split: sample(part, self.tokenizer, CONTEXT, limits[split]) for split, part in found.items()}
        others = torch.Generator().manual_seed(seed)
        passages = {split: cut(select(read("docs"), split), part, others) for split, part in found.items()}
        yield "cut", {split: sample(part, self.tokenizer, CONTEXT, limits[split]) for split, part in passages.items()}
        generator = torch.Generator().manual_seed(seed)
        yield "shuffled", {split: shuffled(windows, generator) for split, windows in real.items()}
        yield "uniform", {split: uniform(windows, self.tokenizer, generator) for split, windows in real.items()}

    def _real(self, split: Split, tokens: int, seed: int) -> Windows:
        """Windows spread over the whole split, others for every seed."""
        count = -(-tokens // CONTEXT)
        found = sample(select(read("docs"), split), self.tokenizer, CONTEXT, (seed + 1) * count * CONTEXT)
        return replace(found, ids=found.ids[seed * count :], document=found.document[seed * count :])

    def stage(self, a: str, b: str) -> Stage:
        return Stage(self.models[a], self.models[b], SITES[a], SITES[b], joined(self.report, a, b), MEMORY)


def joined(found: dict[str, Activations], a: str, b: str) -> Paired:
    return pair(found[a], found[b], SITES[a], SITES[b])


def cut(documents: list[Document], like: list[Document], generator: torch.Generator) -> list[Document]:
    """A passage of one document after another, from a random place in it, as long as each of `like`."""
    long = iter(documents)
    found = []
    for name, text in like:
        whole = next(content for _, content in long if len(content) > len(text))
        start = int(torch.randint(len(whole) - len(text) + 1, (1,), generator=generator))
        found.append((name, whole[start : start + len(text)]))
    return found


def shuffled(windows: Windows, generator: torch.Generator) -> Windows:
    """The tokens of each document of a window in random order."""
    ids = windows.ids.clone()
    for row, owner in zip(ids, windows.document, strict=True):
        for document in owner.unique():
            places = (owner == document).nonzero()[:, 0]
            places = places[places > 0]
            row[places] = row[places[torch.randperm(len(places), generator=generator)]]
    return replace(windows, ids=ids)


def uniform(windows: Windows, tokenizer, generator: torch.Generator) -> Windows:
    """Ordinary tokens, all equally likely."""
    special = set(tokenizer.all_special_ids)
    ordinary = torch.tensor([id for id in range(len(tokenizer)) if id not in special], dtype=torch.int32)
    ids = ordinary[torch.randint(len(ordinary), windows.ids.shape, generator=generator)]
    ids[:, 0] = bos_of(tokenizer)
    return replace(windows, ids=ids)


def fitted(bench: Bench, a: str, b: str, fit: Paired, held_out: Paired) -> Translation:
    """The row of the main job, fitted on one text and with λ chosen on another."""
    of_a, of_b = bench.models[a], bench.models[b]
    tables = token_tables(of_a, of_b, fit.a.windows, held_out.a.windows, fit.site_b)
    inputs = {name: one for name, one in free_inputs(of_a, of_b, fit, tables).items() if name in bench.row.reads}

    def variables(paired: Paired) -> Iterator[dict[str, Variable]]:
        for tokens in paired.with_history(streams(inputs.values()), reach(inputs.values())):
            yield {**{name: one.columns(tokens) for name, one in inputs.items()}, "target": tokens.target}

    moments = [accumulate(variables(part), needed(tuple(inputs))) for part in (fit, held_out)]
    found = from_ridge(bench.row.name, ridge(*moments, tuple(inputs)), inputs)
    return found.starting_with(fit.b.read(0, fit.site_b)[0, 0].float())


def first(paired: Paired, tokens: int) -> Paired:
    """Only the first windows are kept to fit on: a smaller sample of the same text."""
    keep = paired.keep.clone()
    keep[-(-tokens // CONTEXT) :] = False
    return replace(paired, keep=keep)


def lines(bench: Bench, seeds: list[int]) -> Iterator[dict]:
    stages = {(a, b): bench.stage(a, b) for a, b in DIRECTIONS}
    whole = {}
    for (_, b), stage in stages.items():
        whole[b] = evaluate({b: stage.whole(bench.models[b].net)}, stage.windows, vocabulary=stage.vocabulary)[b]
    for seed in seeds:
        began = time.monotonic()
        found = {
            name: {split: bench.harvested(windows, f"{seed}-{name}-{split}") for split, windows in text.items()}
            for name, text in bench.texts(seed)
        }
        seconds = time.monotonic() - began
        for a, b in DIRECTIONS:
            kinds = {"real": "real", "by A": a, "by B": b, **{name: name for name in ("cut", *NULLS)}}
            for tokens in TOKENS:
                translations = {}
                for kind, name in kinds.items():
                    both = {split: joined(one, a, b) for split, one in found[name].items()}
                    translations[kind] = fitted(bench, a, b, first(both["fit"], tokens), both["sweep"])
                stage = stages[a, b]
                made = {kind: stage.translated(one) for kind, one in translations.items()}
                scores = evaluate(made, stage.windows, vocabulary=stage.vocabulary, memory=MEMORY)
                yield {
                    "benchmark": "no_text", "a": a, "b": b, "row": bench.row.name, "tokens": tokens, "seed": seed,
                    "documents": scores["real"].documents, "report_tokens": stage.windows.tokens,
                    "whole": {"a": whole[a].ce, "b": whole[b].ce},
                    "ce": {kind: one.ce for kind, one in scores.items()},
                    "minus_real": {kind: difference(scores[kind], scores["real"]) for kind in (*WRITTEN, "cut", *NULLS)},
                    "null_minus_written": {
                        f"{null} − {kind}": difference(scores[null], scores[kind]) for null in NULLS for kind in WRITTEN
                    },
                    "seconds_of_text": seconds,
                }  # fmt: skip


def difference(one: Scores, other: Scores) -> list[float]:
    """The paired difference in nats, and its interval over documents."""
    return [one.ce - other.ce, *one.interval(minus=other)]


def verdict(found: list[dict]) -> dict:
    """The rule at the head of this file, and the mean over seeds by direction, amount and kind of text."""
    worse = [
        (line["a"], line["b"], line["tokens"], line["seed"], kind)
        for line in found for kind in WRITTEN if line["minus_real"][kind][1] > MARGIN
    ]  # fmt: skip
    beaten = all(low > 0 for line in found for _, low, _ in line["null_minus_written"].values())
    means = {}
    for line in found:
        of = means.setdefault(f"{line['a']} → {line['b']}, {line['tokens']:,} tokens", {})
        for kind, (value, _, _) in line["minus_real"].items():
            of.setdefault(kind, []).append(value)
    return {
        "benchmark": "no_text", "verdict": "refuted" if worse else "upheld" if beaten else "undecided",
        "cells": len(WRITTEN) * len(found), "worse": worse, "nulls_beaten": beaten,
        "minus_real": {of: {kind: sum(all_) / len(all_) for kind, all_ in one.items()} for of, one in means.items()},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", action="append", type=int, help="Default: 0, 1 and 2.")
    parser.add_argument("--small", action="store_true", help="One seed.")
    parser.add_argument("--row", default=ROW)
    parser.add_argument("--verdict", type=Path, help="Lines of an earlier run, to be summed up.")
    given = parser.parse_args()
    if given.verdict:
        print(json.dumps(verdict([json.loads(line) for line in given.verdict.read_text().splitlines()])))
        return
    models = {name: load(resolve(name).folder, name=name, dtype=torch.float32) for name in SITES}
    tokenizer = models["demo:gpt2"].tokenizer
    with TemporaryDirectory() as folder:
        report = sample(select(read("docs"), "report"), tokenizer, CONTEXT, REPORT)
        bench = Bench(models, {}, Path(folder), rows.row(given.row))
        bench = replace(bench, report=bench.harvested(report, "report"))
        for line in lines(bench, given.seed or ([0] if given.small else [0, 1, 2])):
            assert line["documents"] >= LEAST_DOCUMENTS
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
