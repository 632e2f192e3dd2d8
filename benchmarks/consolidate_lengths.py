"""How much of the in-context gain of SmolLM2's documents of several lengths remains after they are written into the weights.

A document is the first 170, 800 or 4,000 tokens of a text of the report split of `docs`, and the 256 tokens after them are four
queries, as in `conversions_consolidate.py`. The longest documents are chosen first, and every text is used once. Edits are scaled
to the budget on 8,192 tokens of the sweep split, and what they then cost is measured on as many of the report split.

One JSON line per document and arm, with the sums of its queries; `--done` continues from them. Then a summary per length, with
intervals over documents, and one of all lengths.

    converted             as `stitch convert consolidate` does it
    null:other document   the edit of the document before, of the same length
    baseline:one step     the first step alone, in closed form
"""

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
from _lines import read as read_lines
from conversions_consolidate import (
    LENGTH,
    OTHER,
    PEER_TOKENS,
    QUERIES,
    Table,
    add,
    ceilings,
    on_less_text,
    prefixed_queries,
    rounded,
    score_sets,
    summary,
    sums,
)
from torch import Tensor

from stitch.conversions.consolidation.arms import ModelAndText, fit, prepare, queries_about
from stitch.conversions.consolidation.fitting import STEPS
from stitch.conversions.consolidation.slow_weights import Edit
from stitch.conversions.donor import read_donor
from stitch.evaluation.scores import Scores
from stitch.text.documents import read, select

ARMS = {"converted": STEPS, "baseline:one step": 1}  # steps of the natural gradient
USUAL = 1.25  # factor with which edits of SmolLM2 cost about 0.02 nats per token: the search begins there


def open_model(name: str, dtype: str) -> ModelAndText:
    donor = read_donor(name, text="docs", tokens=40_000, held_out=65_536, context=256, dtype=dtype)
    setup = prepare(donor.model, donor.windows)
    priced = on_less_text(setup, PEER_TOKENS)
    assert priced.axes  # computed before anything is timed
    return priced


def documents(setup: ModelAndText, lengths: list[int], count: int) -> dict[int, list[tuple[str, Tensor]]]:
    """By length, `count` documents with their queries. None is in the text that costs are measured on, and none is used twice."""
    used, texts = set(setup.windows["report"].document.unique().tolist()), []
    for place, (name, text) in enumerate(select(read("docs"), "report")):
        if place not in used:
            texts.append(
                (name, torch.tensor(setup.model.tokenizer.encode(text, add_special_tokens=False, verbose=False)))
            )
    found: dict[int, list[tuple[str, Tensor]]] = {}
    for length in sorted(lengths, reverse=True):
        whole = length + QUERIES * LENGTH
        fitting = [(name, ids) for name, ids in texts if len(ids) >= whole][:count]
        taken = {name for name, _ in fitting}
        texts = [one for one in texts if one[0] not in taken]
        found[length] = [(name, ids[:whole]) for name, ids in fitting]
    return found


def measured(
    setup: ModelAndText, arm: str, length: int, found: list[tuple[str, Tensor]], budget: float, known: set[str]
) -> Iterator[dict]:
    """A line per document that is not `known`. The null of a document takes the edit of the one measured before it."""
    before: tuple[Edit, float] | None = None
    for name, ids in found:
        if name in known:
            continue
        start, queries = time.monotonic(), prefixed_queries(setup, ids, context=length)
        edit = fit(setup, queries_about(setup.model, ids[:length]), budget, steps=ARMS[arm])
        scale = setup.scale(edit, budget, start=USUAL)
        rows = {arm: score_sets(setup, queries, edit, scale)}
        if arm == "converted":
            rows |= {"without context": score_sets(setup, queries), "with context": ceilings(queries)}
            if before is not None:
                rows[OTHER] = score_sets(setup, queries, *before)
            before = edit, scale
        cost = rounded(setup.retention_cost(edit, scale)[0])
        yield {
            "length": length, "document": name, "arm": arm, "seconds": round(time.monotonic() - start), "cost": cost,
            "scale": rounded(scale), "scores": {row: {key: sums(one) for key, one in by.items()} for row, by in rows.items()},
        }  # fmt: skip


def summaries(lines: list[dict]) -> Iterator[dict]:
    """Lines of `conversions_consolidate.summary` per length and over all: `converted` and the ends on all documents, each other
    row on those that have it.
    """
    by_document: dict[tuple[int, str], dict] = defaultdict(lambda: {"scores": {}, "costs": {}})
    for line in lines:
        one = by_document[line["length"], line["document"]]
        one["scores"] |= line["scores"]
        one["costs"][line["arm"]] = line["cost"]
    for length in [*sorted({key[0] for key in by_document}), "all"]:
        chosen = [one for key, one in by_document.items() if length in ("all", key[0])]
        for row in ("converted", "baseline:one step", OTHER):
            having = [one for one in chosen if row in one["scores"] and "converted" in one["scores"]]
            if not having:
                continue
            table: Table = defaultdict(list)
            for one in having:
                for name in dict.fromkeys(("without context", "with context", "converted", row)):
                    scores = one["scores"][name]
                    add(
                        table,
                        name,
                        {key: Scores(*torch.tensor(value).double()[:, None]) for key, value in scores.items()},
                    )
            costs = {
                name: [one["costs"][name] for one in having] for name in {"converted", row} & having[0]["costs"].keys()
            }
            for line in summary(table, costs):
                if "cost_range" in line:
                    line["cost_least"], line["cost_most"] = line.pop("cost_range")
                if line["row"] == row or row == "converted":
                    yield {"length": length, **line}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="bf16", help="The checkpoint's own, and so that of the edited weights.")
    parser.add_argument("--lengths", type=int, nargs="+", default=[170, 800, 4_000])
    parser.add_argument("--documents", type=int, default=12, help="For each length.")
    parser.add_argument(
        "--arms", nargs="*", choices=ARMS, default=["converted"], help="None: the summary of --done alone."
    )
    parser.add_argument("--cost", type=float, default=0.02, help="Budget, in nats per token of other text.")
    parser.add_argument("--done", type=Path, help="Lines of an earlier run. Its documents are not measured again.")
    arguments = parser.parse_args()
    lines = [line for line in read_lines(arguments.done) if "scores" in line] if arguments.done else []
    if arguments.arms:
        setup = open_model(arguments.model, arguments.dtype)
        found = documents(setup, arguments.lengths, arguments.documents)
        for arm in arguments.arms:
            for length in arguments.lengths:
                known = {line["document"] for line in lines if (line["arm"], line["length"]) == (arm, length)}
                for line in measured(setup, arm, length, found[length], arguments.cost, known):
                    lines.append({"model": arguments.model, "dtype": arguments.dtype, **line})
                    print(json.dumps(lines[-1]), flush=True)
    for line in summaries(lines):
        print(json.dumps({"model": arguments.model, "dtype": arguments.dtype, **line}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
