"""What of a document's in-context gain is left once it is in the weights.

`python benchmarks/conversions_consolidate.py [--model M] [--part P]`; `--figure OUT.png LINES.jsonl` draws what it printed.
Documents are of the report split of `docs`, none of them in the other text that costs are measured on. The first 128 tokens of a
document are its context, the 256 after them four queries, on which nothing is fitted. JSON lines: one per document and point of a
curve as soon as it is ready, then a summary with intervals over documents.

    documents  all arms at one cost on other text, under unseen prefixes of 128 tokens and under none
    costs      the gain kept and the cost on other text of the same edits, scaled down
    capacity   one document after another into the same weights: what is left of the first, of all, and what it costs
    repeat     one document consolidated again and again, the model its own donor
    facts      1 to 16 made-up associations in one document; others that were never seen are the control
    tune       rates of the trained baselines, on the sweep split
    choices    steps, queries, coordinates and prefixes of the natural gradient, on the sweep split
"""

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stitch.conversions.consolidation import fitting
from stitch.conversions.consolidation.arms import Bench, arms, consolidate_document, lesson_of, open_bench
from stitch.conversions.consolidation.queries import (
    Exam,
    continuations,
    cut_queries,
    examine,
    joined,
    kept,
    learn,
    passages,
    unrelated,
    whole,
    with_context,
)
from stitch.conversions.consolidation.slow_weights import Curvature, Edit, coordinates, matrix, parameters, write
from stitch.conversions.donor import read_donor
from stitch.evaluation.scores import Scores
from stitch.text.documents import Split, read, select

CONTEXT, QUERIES, LENGTH = 128, 4, 64
CONDITIONS = ("unseen prefix", "no prefix")


def open_model(name: str, tokens: int = 40_000, held_out: int = 65_536) -> Bench:
    donor = read_donor(name, text="docs", tokens=tokens, held_out=held_out, context=256)
    return open_bench(donor.model, donor.windows)


def documents(bench: Bench, split: Split, count: int) -> list[tuple[str, Tensor]]:
    """Those that the windows of the split do not reach."""
    used = int(bench.windows[split].document.max()) + 1
    found = []
    for name, text in select(read("docs"), split)[used:]:
        ids = bench.model.tokenizer.encode(text, add_special_tokens=False, verbose=False)
        if len(ids) >= CONTEXT + QUERIES * LENGTH:
            found.append((name, torch.tensor(ids[: CONTEXT + QUERIES * LENGTH])))
        if len(found) == count:
            break
    return found


def exams(bench: Bench, ids: Tensor, split: Split = "report", seed: int = 1) -> dict[str, Exam]:
    lesson = learn(bench.model, ids[:CONTEXT], cut_queries(ids[CONTEXT:], LENGTH))
    prefixes = unrelated(bench.windows[split], QUERIES, CONTEXT, torch.Generator().manual_seed(seed))
    return {"unseen prefix": Exam(lesson, prefixes), "no prefix": Exam(lesson, prefixes[:, :0])}


def grade(bench: Bench, papers: dict[str, Exam], edit: Edit | None = None, scale: float = 1.0) -> dict[str, Scores]:
    changed = {} if edit is None else parameters(bench.model, edit, scale)
    return {condition: whole(examine(bench.model, paper, changed)) for condition, paper in papers.items()}


Table = dict[tuple[str, str], list[Scores]]


def summary(table: Table, retained: dict[str, list[float]]) -> Iterator[dict]:
    """A line per row and condition: CE, KL(donor with context ‖ row), share of the gain kept, cost on other text."""
    scores = {key: joined(parts) for key, parts in table.items()}
    for (row, condition), found in scores.items():
        without, ceiling = scores["without context", condition], scores["with context", condition]
        share = kept(found, without, ceiling)
        low, high = found.interval(minus=without)
        line = {"row": row, "condition": condition, "documents": len(found.nats), **found.row(row)}
        line |= {"minus_without": [found.ce - without.ce, low, high], "kept": list(share)}
        if row != "converted" and ("converted", condition) in scores:
            ours = scores["converted", condition]
            line["converted_minus_this"] = [ours.ce - found.ce, *ours.interval(minus=found)]
        if costs := retained.get(row):
            line["retain_cost"] = sum(costs) / len(costs)
            line["retain_cost_range"] = [min(costs), max(costs)]
        yield line


def run_documents(bench: Bench, count: int, budget: float, name: str, split: Split = "report") -> Iterator[dict]:
    found = documents(bench, split, count + 1)
    table: Table = defaultdict(list)
    retained: dict[str, list[float]] = defaultdict(list)
    (_, first), *rest = found
    before = consolidate_document(bench, first[:CONTEXT], budget)  # the wrong document of the next
    for document, ids in rest:
        start, papers = time.monotonic(), exams(bench, ids, split)
        rows: dict[str, dict[str, Scores]] = {"without context": grade(bench, papers)}
        rows["with context"] = {condition: whole(with_context(paper.lesson)) for condition, paper in papers.items()}
        ours: Any = None
        for row, make in arms(bench, ids[:CONTEXT], first[:CONTEXT], budget).items():
            if row == "null:other document":
                edit, scale = before
            elif row == "null:noise":
                edit = fitting.random_direction(ours[0])
                scale = bench.scale(edit, budget)
            else:
                edit = make()
                scale = bench.scale(edit, budget)
            ours = (edit, scale) if row == "converted" else ours
            rows[row] = grade(bench, papers, edit, scale)
            retained[row].append(bench.retained(edit, scale)[0])
        before = ours
        for row, by_condition in rows.items():
            for condition, one in by_condition.items():
                table[row, condition].append(one)
        yield {
            "kind": "document", "document": document, "seconds": time.monotonic() - start,
            "ce": {row: {condition: one.ce for condition, one in by.items()} for row, by in rows.items()},
            "retain_cost": {row: costs[-1] for row, costs in retained.items()},
        }  # fmt: skip
    for line in summary(table, retained):
        yield {"kind": "summary", **line}


def run_costs(bench: Bench, count: int, budget: float, name: str) -> Iterator[dict]:
    """The first documents of `documents`; an edit at a share of the factor at which it costs the budget on the sweep split."""
    shares = (0.3, 0.5, 0.7, 0.85, 1.0)
    tables: dict[float, Table] = {share: defaultdict(list) for share in shares}
    costs: dict[float, list[float]] = defaultdict(list)
    for _, ids in documents(bench, "report", count + 1)[1:]:
        papers = exams(bench, ids)
        without = grade(bench, papers)
        edit, scale = consolidate_document(bench, ids[:CONTEXT], budget)
        for share, table in tables.items():
            costs[share].append(bench.retained(edit, share * scale)[0])
            for condition, one in grade(bench, papers, edit, share * scale).items():
                table["converted", condition].append(one)
                table["without context", condition].append(without[condition])
                table["with context", condition].append(whole(with_context(papers[condition].lesson)))
    for share, table in tables.items():
        for line in summary(table, {"converted": costs[share]}):
            if line["row"] == "converted":
                yield {"kind": "costs", "share": share, **line}


def run_capacity(bench: Bench, count: int, budget: float, name: str) -> Iterator[dict]:
    """`budget` is each document's own, and costs add up; every document is fitted on the weights that hold those before it."""
    found = documents(bench, "report", count)
    papers = [exams(bench, ids) for _, ids in found]
    without = [grade(bench, paper) for paper in papers]
    ceilings = [{condition: whole(with_context(one.lesson)) for condition, one in paper.items()} for paper in papers]
    current, original = bench, {b: matrix(bench.model, b).clone() for b in range(bench.model.depth)}
    for number, (_, ids) in enumerate(found, 1):
        edit, scale = consolidate_document(current, ids[:CONTEXT], budget)
        write_edit(bench, edit, scale)
        # The curvature of the first model serves for all: the cost is searched anew each time.
        current = Bench(bench.model, bench.windows)
        current.__dict__["axes"] = bench.axes
        total = {b: matrix(bench.model, b) - original[b] for b in original}
        line: dict = {"kind": "capacity", "documents": number, "retain_cost": cost_of_all(bench)}
        line["length"] = float(sum(one.square().sum() for one in total.values())) ** 0.5
        for condition in CONDITIONS:
            graded = [grade(bench, {condition: paper[condition]})[condition] for paper in papers[:number]]
            base, top = [one[condition] for one in without[:number]], [one[condition] for one in ceilings[:number]]
            line[condition] = {
                "all": list(kept(joined(graded), joined(base), joined(top))),
                "first": kept(graded[0], base[0], top[0])[0],
                "last": kept(graded[-1], base[-1], top[-1])[0],
            }
        yield line
    restore(bench, original)


def run_repeat(bench: Bench, count: int, budget: float, name: str, times: int = 4) -> Iterator[dict]:
    """Each of `count` documents `times` times in a row, from the donor on."""
    original = {b: matrix(bench.model, b).clone() for b in range(bench.model.depth)}
    table: dict[int, Table] = defaultdict(lambda: defaultdict(list))
    costs: dict[int, list[float]] = defaultdict(list)
    measure(bench)
    for _, ids in documents(bench, "report", count):
        papers = exams(bench, ids)
        without = grade(bench, papers)
        ceiling = {condition: whole(with_context(one.lesson)) for condition, one in papers.items()}
        current = bench
        for number in range(1, times + 1):
            edit, scale = consolidate_document(current, ids[:CONTEXT], budget, seed=number)
            write_edit(bench, edit, scale)
            current = Bench(bench.model, bench.windows)
            current.__dict__["axes"] = bench.axes
            costs[number].append(cost_of_all(bench))
            for condition, one in grade(bench, papers).items():
                table[number]["converted", condition].append(one)
                table[number]["without context", condition].append(without[condition])
                table[number]["with context", condition].append(ceiling[condition])
        restore(bench, original)
    for number, found in table.items():
        for line in summary(found, {"converted": costs[number]}):
            if line["row"] == "converted":
                yield {"kind": "repeat", "times": number, **line}


def cost_of_all(bench: Bench) -> float:
    """What the weights as they are now cost on the report split."""
    return bench.retained({}, 1.0)[0]


def measure(bench: Bench) -> None:
    """What is kept of the donor, before its weights change."""
    assert bench.axes and bench.untouched


@torch.no_grad()
def write_edit(bench: Bench, edit: Edit, scale: float) -> None:
    measure(bench)
    write(bench.model, edit, scale)


@torch.no_grad()
def restore(bench: Bench, original: Edit) -> None:
    for block, weight in original.items():
        matrix(bench.model, block).copy_(weight)


def run_facts(bench: Bench, count: int, budget: float, name: str) -> Iterator[dict]:
    """`count` sets of facts `The default of A is B.`, A and B single tokens drawn at random; only B is scored."""
    tokenizer = bench.model.tokenizer
    words = [
        index for text, index in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
        if text.startswith("Ġ") and text[1:].isalpha() and len(text) > 4
    ]  # fmt: skip
    start, middle = (tokenizer.encode(text, add_special_tokens=False) for text in ("\nThe default of", " is"))
    for facts in (1, 2, 4, 8, 16):
        table: Table = defaultdict(list)
        retained: dict[str, list[float]] = defaultdict(list)
        for trial in range(count):
            generator = torch.Generator().manual_seed(trial)
            drawn = torch.tensor(words)[torch.randperm(len(words), generator=generator)[: 4 * 16]].view(2, 2, 16)
            both = [
                torch.stack([torch.tensor([*start, a, *middle, b]) for a, b in zip(*pairs.tolist(), strict=True)])[
                    :facts
                ]
                for pairs in drawn
            ]
            document = both[0].flatten()
            edit, scale = consolidate_document(bench, document, budget, seed=trial)
            retained["converted"].append(bench.retained(edit, scale)[0])
            for kind, queries in zip(("", "unrelated "), both, strict=True):
                lesson = learn(bench.model, document, queries, given=queries.shape[1] - 1)
                prefixes = unrelated(bench.windows["report"], len(queries), 64, generator)
                papers = {"unseen prefix": Exam(lesson, prefixes), "no prefix": Exam(lesson, prefixes[:, :0])}
                for condition, one in grade(bench, papers).items():
                    table[f"{kind}without context", condition].append(one)
                for condition, one in grade(bench, papers, edit, scale).items():
                    table[f"{kind}converted", condition].append(one)
                for condition, paper in papers.items():
                    table[f"{kind}with context", condition].append(whole(with_context(paper.lesson)))
        for line in summary(table, retained):
            yield {"kind": "facts", "facts": facts, **line}


def run_tune(bench: Bench, count: int, budget: float, name: str) -> Iterator[dict]:
    """The trained baselines' rates, at the cost of the budget."""
    choices: list[tuple[str, float, str]] = [
        *(("sgd", rate, "text") for rate in (0.3, 1.0, 3.0)),
        *(("adamw", rate, labels) for labels in ("text", "donor") for rate in (3e-3, 1e-2, 3e-2)),
    ]
    table: Table = defaultdict(list)
    for _, ids in documents(bench, "sweep", count):
        papers = exams(bench, ids, "sweep")
        lesson = lesson_of(bench.model, ids[:CONTEXT])
        pieces = passages(ids[:CONTEXT], len(lesson.queries), LENGTH, torch.Generator().manual_seed(0))
        text = type(lesson)(pieces, lesson.target)
        for condition, paper in papers.items():
            table["without context", condition].append(whole(examine(bench.model, paper)))
            table["with context", condition].append(whole(with_context(paper.lesson)))
        edit, scale = consolidate_document(bench, ids[:CONTEXT], budget)
        for condition, one in grade(bench, papers, edit, scale).items():
            table["converted", condition].append(one)
        for optimiser, rate, labels in choices:
            learnt: Any = lesson if labels == "donor" else text
            edit = fitting.train(
                bench.model, learnt, bench.windows["fit"], optimiser=optimiser, rate=rate, labels=labels,  # pyright: ignore
            )  # fmt: skip
            for condition, one in grade(bench, papers, edit, bench.scale(edit, budget)).items():
                table[f"{optimiser} {rate} {labels}", condition].append(one)
    for line in summary(table, {}):
        yield {"kind": "tune", **line}


def run_choices(bench: Bench, count: int, budget: float, name: str) -> Iterator[dict]:
    """What the natural gradient owes to each of its parts. `as it is` has what `convert consolidate` has."""
    flat = Curvature(
        {b: torch.eye(len(m), dtype=m.dtype) for b, m in bench.curvature.neurons.items()},
        {b: torch.eye(len(m), dtype=m.dtype) * m.diagonal().mean() for b, m in bench.curvature.gradients.items()},
    )
    neurons_alone = coordinates(Curvature(bench.curvature.neurons, flat.gradients), bench.model)
    table: Table = defaultdict(list)
    retained: dict[str, list[float]] = defaultdict(list)
    for _, ids in documents(bench, "sweep", count):
        papers, document = exams(bench, ids, "sweep"), ids[:CONTEXT]
        for condition, paper in papers.items():
            table["without context", condition].append(whole(examine(bench.model, paper)))
            table["with context", condition].append(whole(with_context(paper.lesson)))
        both, generator = lesson_of(bench.model, document), torch.Generator().manual_seed(0)
        own = learn(bench.model, document, continuations(bench.model, document, len(both.queries), LENGTH, generator))
        text = learn(bench.model, document, passages(document, len(both.queries), LENGTH, generator))
        usual = {"axes": bench.axes, "reach": fitting.SHARE * budget}
        variants: dict[str, tuple[Any, dict]] = {
            "as it is": (both, usual),
            "one step": (both, {**usual, "steps": 1}),
            "24 steps": (both, {**usual, "steps": 24}),
            "continuations alone": (own, usual),
            "passages alone": (text, usual),
            "without G": (both, {**usual, "axes": neurons_alone}),
            "reach of the whole budget": (both, {**usual, "reach": budget}),
        }
        for variant, (lesson, arguments) in variants.items():
            edit = fitting.natural_gradient(bench.model, lesson, bench.windows["fit"], **arguments)
            scale = bench.scale(edit, budget)
            retained[variant].append(bench.retained(edit, scale)[0])
            for condition, one in grade(bench, papers, edit, scale).items():
                table[variant, condition].append(one)
    for line in summary(table, retained):
        yield {"kind": "choices", **line}


PARTS = {  # each with how many documents, or sets of facts, it takes
    "documents": (run_documents, 24),
    "costs": (run_costs, 12),
    "capacity": (run_capacity, 8),
    "repeat": (run_repeat, 4),
    "facts": (run_facts, 4),
    "tune": (run_tune, 3),
    "choices": (run_choices, 3),
}
ON_SWEEP = ("tune", "choices")


def draw(out: Path, lines: list[dict]) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(18, 5))
    colours = {model: f"C{index}" for index, model in enumerate(dict.fromkeys(line["model"] for line in lines))}
    rows = [line for line in lines if line["kind"] == "summary" and line["condition"] == "unseen prefix"]
    names = [
        row for row in dict.fromkeys(line["row"] for line in rows) if row not in ("without context", "with context")
    ]
    for index, (model, colour) in enumerate(colours.items()):
        for line in rows:
            if line["model"] == model and line["row"] in names:
                height = len(names) - names.index(line["row"]) - 0.2 * index
                axes[0].plot(line["kept"][1:], [height, height], color=colour, alpha=0.5)
                axes[0].plot(line["kept"][0], height, "o", color=colour)
        for kind, key, axis in (("capacity", "documents", axes[1]), ("facts", "facts", axes[2])):
            if not (points := [line for line in lines if line["kind"] == kind and line["model"] == model]):
                continue
            if kind == "capacity":
                for which, style in (("all", "-"), ("first", ":")):
                    shares = [p["unseen prefix"][which] for p in points]
                    values = [share[0] if isinstance(share, list) else share for share in shares]
                    axis.plot([p[key] for p in points], values, style, color=colour, label=f"{model}, {which}")
            else:
                for row, style in (("converted", "-"), ("without context", ":"), ("unrelated converted", "--")):
                    some = [p for p in points if p["row"] == row and p["condition"] == "unseen prefix"]
                    axis.plot(
                        [p[key] for p in some], [p["ce"] for p in some], style, color=colour, label=f"{model}, {row}"
                    )
    axes[0].set_yticks(range(len(names), 0, -1), names)
    axes[0].set_xlabel("share of the in-context gain kept (95 % interval by document)")
    axes[1].set(xlabel="documents, one after another", ylabel="share of the in-context gain kept")
    axes[2].set(xlabel="facts in the document", ylabel="nats of the answer")
    axes[0].axvline(0, color="black", linewidth=0.8)
    for axis in axes[1:]:
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(out, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="Default: demo:gpt2 and demo:llama.")
    parser.add_argument("--part", action="append", choices=list(PARTS), help="Default: those on the report split.")
    parser.add_argument("--documents", type=int, help="In place of each part's own number.")
    parser.add_argument("--cost", type=float, default=0.02, help="Nats per token of other text.")
    parser.add_argument("--figure", nargs=2, metavar=("OUT.png", "LINES.jsonl"))
    arguments = parser.parse_args()
    if arguments.figure:
        out, lines = map(Path, arguments.figure)
        draw(out, [json.loads(line) for line in lines.read_text().splitlines()])
        return
    for model in arguments.model or ("demo:gpt2", "demo:llama"):
        bench = open_model(model)
        for part in arguments.part or [part for part in PARTS if part not in ON_SWEEP]:
            measure_part, count = PARTS[part]
            for line in measure_part(bench, arguments.documents or count, arguments.cost, model):
                print(
                    json.dumps({"benchmark": "consolidate", "model": model, "cost": arguments.cost, **line}), flush=True
                )


if __name__ == "__main__":
    sys.exit(main())
