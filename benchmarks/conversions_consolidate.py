"""How much of a document's in-context gain remains after the document is written into the weights.

Documents come from the report split of `docs`, and none of them is in the other text on which costs are
measured. The first 128 tokens of a document are its context; the 256 after them are four queries, on which nothing is
fitted. JSON lines: one per document and point of a curve as soon as it is ready, then a summary with intervals over
documents.

    documents  all methods at the same cost on other text, with unseen prefixes of 128 tokens and with none
    peers      the same for the conversion, methods of other work (`_consolidate_peers.py`) and the wrong document
    costs      the gain kept and the cost on other text when the same edits are scaled down
    together   four documents written together, one after another, and one after another with the earlier ones fitted again
    capacity   documents written one after another into the same weights: the gain kept for the first and for all, the cost
    repeat     one document consolidated several times, each time with the edited model as donor
    facts      1 to 16 invented associations in one document; associations that were never seen are the control
    tune       learning rates of the trained baselines, on the sweep split
    tune-peers hyperparameters of the methods of other work, one after another, on the sweep split
    choices    steps, queries, coordinates and prefixes of the natural gradient, on the sweep split
"""

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _consolidate_peers import CHOICES, OPTIONS, peers
from _lines import read as read_lines
from torch import Tensor

from stitch.conversions.consolidation import fitting
from stitch.conversions.consolidation.arms import (
    FIRST_TOKENS,
    ModelAndText,
    arms,
    consolidate_documents,
    fit,
    prepare,
    queries_about,
)
from stitch.conversions.consolidation.queries import (
    LabelledQueries,
    PrefixedQueries,
    as_one_unit,
    concatenated,
    continuations,
    cut_queries,
    gain_kept,
    label_queries,
    passages,
    score_queries,
    scores_with_context,
    unrelated_prefixes,
)
from stitch.conversions.consolidation.slow_weights import (
    LARGEST,
    Curvature,
    Edit,
    apply_edit,
    coordinates,
    down_projection,
    edit_norm,
    edited_parameters,
)
from stitch.conversions.donor import read_donor
from stitch.evaluation.scores import Scores
from stitch.text.documents import Split, read, select
from stitch.text.windows import Windows

CONTEXT, QUERIES, LENGTH = 128, 4, 64
CONDITIONS = ("unseen", "none")  # the prefix of a query
ENDS = ("without context", "with context")  # of the gain


def open_model(name: str, tokens: int = 40_000, held_out: int = 65_536) -> ModelAndText:
    donor = read_donor(name, text="docs", tokens=tokens, held_out=held_out, context=256)
    return prepare(donor.model, donor.windows)


def documents(setup: ModelAndText, split: Split, count: int) -> list[tuple[str, Tensor]]:
    """Documents that are long enough and are not in the windows of the split."""
    used, found = set(setup.windows[split].document.unique().tolist()), []
    for place, (name, text) in enumerate(select(read("docs"), split)):
        ids = setup.model.tokenizer.encode(text, add_special_tokens=False, verbose=False)
        if place not in used and len(ids) >= CONTEXT + QUERIES * LENGTH:
            found.append((name, torch.tensor(ids[: CONTEXT + QUERIES * LENGTH])))
        if len(found) == count:
            break
    return found


def prefixed_queries(
    setup: ModelAndText, ids: Tensor, split: Split = "report", seed: int = 1, context: int = CONTEXT
) -> dict[str, PrefixedQueries]:
    """The tokens behind the first `context`, cut into queries. Prefixes have CONTEXT tokens."""
    labelled = label_queries(setup.model, ids[:context], cut_queries(ids[context:], LENGTH))
    prefixes = unrelated_prefixes(setup.windows[split], QUERIES, CONTEXT, torch.Generator().manual_seed(seed))
    return with_and_without(labelled, prefixes)


def with_and_without(labelled: LabelledQueries, prefixes: Tensor) -> dict[str, PrefixedQueries]:
    return dict(
        zip(CONDITIONS, (PrefixedQueries(labelled, prefixes), PrefixedQueries(labelled, prefixes[:, :0])), strict=True)
    )


def ceilings(query_sets: dict[str, PrefixedQueries]) -> dict[str, Scores]:
    """The donor with the document in its context."""
    return {condition: as_one_unit(scores_with_context(queries.labelled)) for condition, queries in query_sets.items()}


def score_sets(
    setup: ModelAndText, query_sets: dict[str, PrefixedQueries], edit: Edit | None = None, scale: float = 1.0
) -> dict[str, Scores]:
    changed = {} if edit is None else edited_parameters(setup.model, edit, scale)
    return {
        condition: as_one_unit(score_queries(setup.model, queries, changed))
        for condition, queries in query_sets.items()
    }


Table = dict[tuple[str, str], list[Scores]]  # by row and condition, one entry per document


def add(table: Table, row: str, scores: dict[str, Scores]) -> None:
    for condition, found in scores.items():
        table[row, condition].append(found)


def summary(table: Table, retained: dict[str, list[float]]) -> Iterator[dict]:
    """One line per row. By condition: CE, KL(donor with context ‖ row), percent of the gain kept, and what `converted` has
    more of either. The cost on other text is a mean over documents.
    """
    scores = {key: concatenated(parts) for key, parts in table.items()}
    for row in dict.fromkeys(row for row, _ in scores):
        line: dict = {"row": row, "documents": len(scores[row, CONDITIONS[0]].nats)}
        for condition in CONDITIONS:
            found = scores[row, condition]
            without, ceiling = scores["without context", condition], scores["with context", condition]
            line[condition] = {"ce": rounded(found.ce), "kl": rounded(kl_of(found).ce)}
            if row in ENDS:
                line[condition]["kept_percent"] = 100 * ENDS.index(row)
            else:
                line[condition] |= named("kept_percent", gain_kept(found, without, ceiling), times=100)
            if row != "converted" and ("converted", condition) in scores:
                ours = scores["converted", condition]
                line[condition] |= named("minus_ce", difference(ours, found))
                line[condition] |= named("minus_kl", difference(kl_of(ours), kl_of(found)))
        if costs := retained.get(row):
            line |= {"cost": rounded(sum(costs) / len(costs)), "cost_range": [rounded(min(costs)), rounded(max(costs))]}
        yield line


def kl_of(scores: Scores) -> Scores:
    """The sums of KL where those of the cross-entropy are."""
    assert scores.kl is not None
    return replace(scores, nats=scores.kl)


def difference(row: Scores, minus: Scores) -> tuple[float, float, float]:
    """Of nats per token, with its paired interval over documents."""
    return row.ce - minus.ce, *row.interval(minus=minus)


def named(name: str, found: tuple[float, float, float], times: int = 1) -> dict[str, float]:
    keys = (name, f"{name}_low", f"{name}_high")
    return {key: rounded(times * value) for key, value in zip(keys, found, strict=True)}


def rounded(value: float) -> float:
    return round(value, 4)


Makers = dict[str, Callable[[], Edit]]  # edits by row


def run_documents(setup: ModelAndText, count: int, budget: float, name: str, done: list[dict]) -> Iterator[dict]:
    first = documents(setup, "report", 1)[0][1][:CONTEXT]
    yield from measured(setup, setup, count, budget, done, lambda document: arms(setup, [document], [first], budget))


def run_peers(setup: ModelAndText, count: int, budget: float, name: str, done: list[dict]) -> Iterator[dict]:
    priced = on_less_text(setup, PEER_TOKENS)

    def makers(document: Tensor) -> Makers:
        labelled = queries_about(setup.model, document)
        others = peers(setup.model, labelled, setup.windows["fit"], priced.curvature)
        choices = CHOICES[name]
        return {
            "converted": lambda: fit(priced, labelled, budget),
            **{f"peer:{peer}": partial(make, **choices[peer]) for peer, make in others.items()},
            OTHER: lambda: {},
        }

    yield from measured(setup, priced, count, budget, done, makers)


def on_less_text(setup: ModelAndText, tokens: int) -> ModelAndText:
    """The same model, whose costs are measured on the first `tokens` of either split."""
    less: dict[Split, Windows] = {split: setup.windows[split].first(tokens) for split in ON_COSTS}
    found = ModelAndText(setup.model, {**setup.windows, **less})
    found.__dict__["curvature"] = setup.curvature
    return found


OTHER, NOISE = "null:other document", "null:noise"
ON_COSTS: tuple[Split, Split] = ("sweep", "report")
PEER_TOKENS = 8_192  # of other text on which costs are searched, and as many on which they are reported
LONGEST = 1e3  # an edit of this length that costs nothing is not lengthened


def measured(
    setup: ModelAndText,
    priced: ModelAndText,
    count: int,
    budget: float,
    done: list[dict],
    makers: Callable[[Tensor], Makers],
) -> Iterator[dict]:
    """A line per document, with the sums of every row, then the summary. Documents of the lines `done` are read from them.

    Costs are those of `priced`. OTHER is the edit `converted` of the document before; NOISE has its length.
    """
    (_, first), *rest = documents(setup, "report", count + 1)
    known = {line["document"]: line for line in done if "scores" in line}
    lines, before, previous = [], None, first
    for document, ids in rest:
        if document in known:
            line, before = known[document], None
        else:
            if before is None:
                edit = fit(priced, queries_about(setup.model, previous[:CONTEXT]), budget)
                before = scaled(priced, edit, budget)
            line, before = measured_once(setup, priced, document, ids, budget, makers, before)
            yield line
        lines.append(line)
        previous = ids
    table: Table = defaultdict(list)
    for line in lines:
        for row, by_condition in line["scores"].items():
            add(table, row, {key: Scores(*torch.tensor(sums).double()[:, None]) for key, sums in by_condition.items()})
    costs = {row: [line["costs"][row] for line in lines] for row in lines[0]["costs"]}
    yield from summary(table, costs)


def measured_once(
    setup: ModelAndText,
    priced: ModelAndText,
    document: str,
    ids: Tensor,
    budget: float,
    makers: Callable[[Tensor], Makers],
    before: tuple[Edit, float],
) -> tuple[dict, tuple[Edit, float]]:
    """The line of a document, and the edit `converted` with its scale."""
    start, query_sets = time.monotonic(), prefixed_queries(setup, ids)
    rows = {"without context": score_sets(setup, query_sets), "with context": ceilings(query_sets)}
    costs: dict[str, float] = {}
    edits: dict[str, tuple[Edit, float]] = {}
    for row, make in makers(ids[:CONTEXT]).items():
        if row == OTHER:
            edits[row] = before
        else:
            edit = fitting.random_direction(edits["converted"][0]) if row == NOISE else make()
            edits[row] = scaled(priced, edit, budget)
        rows[row] = score_sets(setup, query_sets, *edits[row])
        costs[row] = rounded(priced.retention_cost(*edits[row])[0])
    line = {"document": document, "seconds": round(time.monotonic() - start), "costs": costs}
    line["scores"] = {row: {key: sums(one) for key, one in by.items()} for row, by in rows.items()}
    return line, edits["converted"]


def scaled(setup: ModelAndText, edit: Edit, budget: float) -> tuple[Edit, float]:
    """The edit and the factor with which it costs the budget, also where it is too short for the largest factor."""
    scale = setup.scale(edit, budget)
    while scale == LARGEST and edit_norm(edit) < LONGEST:
        edit = {block: LARGEST * change for block, change in edit.items()}
        scale = setup.scale(edit, budget)
    return edit, scale


def sums(scores: Scores) -> list[float]:
    """Nats, nats of KL, agreements and tokens of one document."""
    assert scores.kl is not None and scores.agreements is not None
    return [rounded(float(one)) for one in (scores.nats, scores.kl, scores.agreements, scores.tokens)]


def run_costs(setup: ModelAndText, count: int, budget: float, name: str) -> Iterator[dict]:
    """Edits of the first documents of `documents`, scaled to shares of the factor that costs the budget on the sweep
    split.
    """
    shares = (0.3, 0.5, 0.7, 0.85, 1.0)
    tables: dict[float, Table] = {share: defaultdict(list) for share in shares}
    costs: dict[float, list[float]] = defaultdict(list)
    for _, ids in documents(setup, "report", count + 1)[1:]:
        query_sets = prefixed_queries(setup, ids)
        without, with_context = score_sets(setup, query_sets), ceilings(query_sets)
        edit, scale = consolidate_documents(setup, [ids[:CONTEXT]], budget)
        for share, table in tables.items():
            costs[share].append(setup.retention_cost(edit, share * scale)[0])
            add(table, "converted", score_sets(setup, query_sets, edit, share * scale))
            add(table, "without context", without)
            add(table, "with context", with_context)
    for share, table in tables.items():
        for line in summary(table, {"converted": costs[share]}):
            if line["row"] == "converted":
                yield {"share": share, **line}


GROUP = 4  # documents


def run_together(setup: ModelAndText, count: int, budget: float, name: str, done: list[dict]) -> Iterator[dict]:
    """A line for each of `count` groups of documents, with the sums of every row, then the summary over groups: of all documents
    of a group, of its first and of its last. `converted` is all at once. Each way may cost `budget` for every document.
    """
    found = documents(setup, "report", GROUP * count)
    known = {line["documents"][0]: line for line in done if "scores" in line}
    lines = []
    for start in range(0, len(found) - GROUP + 1, GROUP):
        group = found[start : start + GROUP]
        line = known.get(group[0][0])
        if line is None:
            line = written_each_way(setup, group, budget)
            yield line
        lines.append(line)
    for part, chosen in {"all": slice(None), "first": slice(1), "last": slice(-1, None)}.items():
        table: Table = defaultdict(list)
        for line in lines:
            for row, by_condition in line["scores"].items():
                scores = {
                    key: Scores(*torch.tensor(sums[chosen]).double().sum(0)[:, None])
                    for key, sums in by_condition.items()
                }
                add(table, row, scores)
        costs = {row: [line["costs"][row] for line in lines] for row in lines[0]["costs"]}
        for line in summary(table, costs):
            yield {"of": part, "groups": line.pop("documents"), **line}


def written_each_way(setup: ModelAndText, group: list[tuple[str, Tensor]], budget: float) -> dict:
    """The line of a group: sums of every document, by row and condition."""
    start, query_sets = time.monotonic(), [prefixed_queries(setup, ids) for _, ids in group]
    contexts = [ids[:CONTEXT] for _, ids in group]
    original = {b: down_projection(setup.model, b).clone() for b in range(setup.model.depth)}
    compute_before_editing(setup)
    rows = {
        "without context": [score_sets(setup, queries) for queries in query_sets],
        "with context": [ceilings(queries) for queries in query_sets],
    }
    costs: dict[str, float] = {}
    ways = {  # the documents of every edit
        "converted": [contexts],
        "one after another": [[one] for one in contexts],
        "earlier ones again": [contexts[: number + 1] for number in range(len(contexts))],
    }
    for row, steps in ways.items():
        current = setup
        for written in steps:
            edit, scale = consolidate_documents(current, written, budget * len(contexts) / len(steps))
            write_edit(setup, edit, scale)
            current = with_old_curvature(setup)
        rows[row] = [score_sets(setup, queries) for queries in query_sets]
        costs[row] = rounded(cost_of_all(setup))
        restore(setup, original)
    scores = {
        row: {key: [sums(one[key]) for one in by_document] for key in CONDITIONS} for row, by_document in rows.items()
    }
    seconds = round(time.monotonic() - start)
    return {"documents": [one for one, _ in group], "seconds": seconds, "costs": costs, "scores": scores}


def run_capacity(setup: ModelAndText, count: int, budget: float, name: str) -> Iterator[dict]:
    """`budget` applies to each document, and costs add up. Each document is fitted on weights that hold the ones
    before it.
    """
    found = documents(setup, "report", count)
    query_sets = [prefixed_queries(setup, ids) for _, ids in found]
    without = [score_sets(setup, queries) for queries in query_sets]
    with_context = [ceilings(queries) for queries in query_sets]
    current, original = setup, {b: down_projection(setup.model, b).clone() for b in range(setup.model.depth)}
    for number, (_, ids) in enumerate(found, 1):
        edit, scale = consolidate_documents(current, [ids[:CONTEXT]], budget)
        write_edit(setup, edit, scale)
        current = with_old_curvature(setup)
        total = {b: down_projection(setup.model, b) - original[b] for b in original}
        line: dict = {"documents": number, "retain_cost": cost_of_all(setup)}
        line["length"] = float(sum(one.square().sum() for one in total.values())) ** 0.5
        for condition in CONDITIONS:
            scored = [score_sets(setup, {condition: queries[condition]})[condition] for queries in query_sets[:number]]
            base, top = ([one[condition] for one in ends[:number]] for ends in (without, with_context))
            line[condition] = {
                "all": list(gain_kept(concatenated(scored), concatenated(base), concatenated(top))),
                "first": gain_kept(scored[0], base[0], top[0])[0],
                "last": gain_kept(scored[-1], base[-1], top[-1])[0],
            }
        yield line
    restore(setup, original)


def run_repeat(setup: ModelAndText, count: int, budget: float, name: str, times: int = 4) -> Iterator[dict]:
    """Consolidates each of `count` documents `times` times in a row, starting from the donor."""
    original = {b: down_projection(setup.model, b).clone() for b in range(setup.model.depth)}
    table: dict[int, Table] = defaultdict(lambda: defaultdict(list))
    costs: dict[int, list[float]] = defaultdict(list)
    compute_before_editing(setup)
    for _, ids in documents(setup, "report", count):
        query_sets = prefixed_queries(setup, ids)
        without, with_context = score_sets(setup, query_sets), ceilings(query_sets)
        current = setup
        for number in range(1, times + 1):
            edit, scale = consolidate_documents(current, [ids[:CONTEXT]], budget, seed=number)
            write_edit(setup, edit, scale)
            current = with_old_curvature(setup)
            costs[number].append(cost_of_all(setup))
            add(table[number], "converted", score_sets(setup, query_sets))
            add(table[number], "without context", without)
            add(table[number], "with context", with_context)
        restore(setup, original)
    for number, found in table.items():
        for line in summary(found, {"converted": costs[number]}):
            if line["row"] == "converted":
                yield {"times": number, **line}


def with_old_curvature(setup: ModelAndText) -> ModelAndText:
    """The model with its changed weights. The curvature of the original one is reused; the scale is searched anew."""
    current = ModelAndText(setup.model, setup.windows)
    current.__dict__["axes"] = setup.axes
    return current


def cost_of_all(setup: ModelAndText) -> float:
    """The cost of the current weights on the report split."""
    return setup.retention_cost({}, 1.0)[0]


def compute_before_editing(setup: ModelAndText) -> None:
    """Computes what depends on the donor's weights before these change."""
    assert setup.axes and setup.unedited_scores


@torch.no_grad()
def write_edit(setup: ModelAndText, edit: Edit, scale: float) -> None:
    compute_before_editing(setup)
    apply_edit(setup.model, edit, scale)


@torch.no_grad()
def restore(setup: ModelAndText, original: Edit) -> None:
    for block, weight in original.items():
        down_projection(setup.model, block).copy_(weight)


def run_facts(setup: ModelAndText, count: int, budget: float, name: str) -> Iterator[dict]:
    """`count` sets of facts `The default of A is B.`, where A and B are single tokens drawn at random. Only B is
    scored.
    """
    tokenizer = setup.model.tokenizer
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
            edit, scale = consolidate_documents(setup, [document], budget, seed=trial)
            retained["converted"].append(setup.retention_cost(edit, scale)[0])
            for kind, queries in zip(("", "unrelated "), both, strict=True):
                labelled = label_queries(setup.model, document, queries, given=queries.shape[1] - 1)
                prefixes = unrelated_prefixes(setup.windows["report"], len(queries), 64, generator)
                query_sets = with_and_without(labelled, prefixes)
                add(table, f"{kind}without context", score_sets(setup, query_sets))
                add(table, f"{kind}converted", score_sets(setup, query_sets, edit, scale))
                add(table, f"{kind}with context", ceilings(query_sets))
        for line in summary(table, retained):
            yield {"facts": facts, **line}


def run_tune(setup: ModelAndText, count: int, budget: float, name: str) -> Iterator[dict]:
    """Learning rates of the trained baselines, compared at the cost of the budget."""
    choices: list[tuple[str, float, str]] = [
        *(("sgd", rate, "text") for rate in (0.3, 1.0, 3.0)),
        *(("adamw", rate, labels) for labels in ("text", "donor") for rate in (3e-3, 1e-2, 3e-2)),
    ]
    table: Table = defaultdict(list)
    for _, ids in documents(setup, "sweep", count):
        query_sets = prefixed_queries(setup, ids, "sweep")
        labelled = queries_about(setup.model, ids[:CONTEXT])
        pieces = passages(ids[:CONTEXT], len(labelled.queries), LENGTH, torch.Generator().manual_seed(0))
        text = type(labelled)(pieces, labelled.target)
        add(table, "without context", score_sets(setup, query_sets))
        add(table, "with context", ceilings(query_sets))
        edit, scale = consolidate_documents(setup, [ids[:CONTEXT]], budget)
        add(table, "converted", score_sets(setup, query_sets, edit, scale))
        for optimiser, rate, labels in choices:
            learnt: Any = labelled if labels == "donor" else text
            edit = fitting.train(
                setup.model, learnt, setup.windows["fit"], optimiser=optimiser, rate=rate, labels=labels,  # pyright: ignore
            )  # fmt: skip
            add(table, f"{optimiser} {rate} {labels}", score_sets(setup, query_sets, edit, setup.scale(edit, budget)))
    yield from summary(table, {})


def run_tune_peers(setup: ModelAndText, count: int, budget: float, name: str, done: list[dict]) -> Iterator[dict]:
    """A line per choice that was tried: the gain kept over all documents, and a last line per peer with the best.

    One hyperparameter after another, from the first of OPTIONS. Costs are measured on FIRST_TOKENS alone.
    """
    quick = on_less_text(setup, FIRST_TOKENS)
    known = {label(line["peer"], line["choice"]): line["kept_percent"] / 100 for line in done if "choice" in line}
    asked, makers = [], []
    for _, ids in documents(setup, "sweep", count):
        query_sets = prefixed_queries(setup, ids, "sweep")
        asked.append((query_sets, score_sets(setup, query_sets), ceilings(query_sets)))
        labelled = queries_about(setup.model, ids[:CONTEXT])
        makers.append(peers(setup.model, labelled, setup.windows["fit"], setup.curvature))

    def kept(peer: str, choice: dict) -> float:
        if label(peer, choice) in known:
            return known[label(peer, choice)]
        table: Table = defaultdict(list)
        for (query_sets, without, with_context), make in zip(asked, makers, strict=True):
            add(table, "converted", score_sets(setup, query_sets, *scaled(quick, make[peer](**choice), budget)))
            add(table, "without context", without)
            add(table, "with context", with_context)
        found = {row: concatenated(parts) for (row, condition), parts in table.items() if condition == "unseen"}
        return gain_kept(found["converted"], found["without context"], found["with context"])[0]

    shared: dict = {}
    for peer, options in OPTIONS.items():
        start = {name: values[0] for name, values in options.items()} | (shared if peer == "alphaedit" else {})
        best, share = yield from one_after_another(start, options, partial(kept, peer), peer, setup.model.depth)
        shared = {name: value for name, value in best.items() if name != "strength"}
        yield {"peer": peer, "choice": best, "kept_percent": rounded(100 * share), "documents": count, "chosen": True}


def label(peer: str, choice: dict) -> tuple:
    return peer, *sorted(choice.items())


def one_after_another(
    start: dict, options: dict[str, list], kept: Callable[[dict], float], peer: str, depth: int
) -> Generator[dict, None, tuple[dict, float]]:
    """Coordinate search: every value of a hyperparameter is tried with the best of those before it. Returns the best, and what
    it keeps. Blocks that the model of `depth` blocks has not are left out.
    """
    best, tried = start, {}
    for name, values in options.items():
        for value in values:
            choice = best | {name: value}
            key = tuple(choice.items())
            if key not in tried and choice.get("first", 0) <= choice.get("last", 0) < depth:
                tried[key] = kept(choice)
                yield {"peer": peer, "choice": choice, "kept_percent": rounded(100 * tried[key])}
        best = dict(max(tried, key=tried.__getitem__))
    return best, tried[tuple(best.items())]


def run_choices(setup: ModelAndText, count: int, budget: float, name: str) -> Iterator[dict]:
    """Ablations of the natural gradient. `as it is` uses the settings of `convert consolidate`."""
    flat = Curvature(
        {b: torch.eye(len(m), dtype=m.dtype) for b, m in setup.curvature.neurons.items()},
        {b: torch.eye(len(m), dtype=m.dtype) * m.diagonal().mean() for b, m in setup.curvature.gradients.items()},
    )
    neurons_alone = coordinates(Curvature(setup.curvature.neurons, flat.gradients), setup.model)
    table: Table = defaultdict(list)
    retained: dict[str, list[float]] = defaultdict(list)
    for _, ids in documents(setup, "sweep", count):
        query_sets, document = prefixed_queries(setup, ids, "sweep"), ids[:CONTEXT]
        add(table, "without context", score_sets(setup, query_sets))
        add(table, "with context", ceilings(query_sets))
        both, generator = queries_about(setup.model, document), torch.Generator().manual_seed(0)
        own = label_queries(
            setup.model, document, continuations(setup.model, document, len(both.queries), LENGTH, generator)
        )
        text = label_queries(setup.model, document, passages(document, len(both.queries), LENGTH, generator))
        usual = {"axes": setup.axes, "reach": fitting.SHARE * budget}
        variants: dict[str, tuple[Any, dict]] = {
            "as it is": (both, usual),
            "one step": (both, {**usual, "steps": 1}),
            "24 steps": (both, {**usual, "steps": 24}),
            "continuations alone": (own, usual),
            "passages alone": (text, usual),
            "without G": (both, {**usual, "axes": neurons_alone}),
            "reach of the whole budget": (both, {**usual, "reach": budget}),
        }
        for variant, (labelled, arguments) in variants.items():
            edit = fitting.natural_gradient(setup.model, labelled, setup.windows["fit"], **arguments)
            scale = setup.scale(edit, budget)
            retained[variant].append(setup.retention_cost(edit, scale)[0])
            add(table, variant, score_sets(setup, query_sets, edit, scale))
    yield from summary(table, retained)


PARTS = {  # each with its number of documents, of groups of documents, or of sets of facts
    "documents": (run_documents, 24),
    "peers": (run_peers, 60),
    "costs": (run_costs, 12),
    "together": (run_together, 12),
    "capacity": (run_capacity, 8),
    "repeat": (run_repeat, 4),
    "facts": (run_facts, 4),
    "tune": (run_tune, 3),
    "tune-peers": (run_tune_peers, 2),
    "choices": (run_choices, 3),
}
ON_SWEEP = ("tune", "tune-peers", "choices")
CONTINUED = ("documents", "peers", "together", "tune-peers")  # from the lines of an earlier run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="Default: demo:gpt2 and demo:llama.")
    parser.add_argument(
        "--part", action="append", choices=list(PARTS), help="Default: all parts that use the report split."
    )
    parser.add_argument("--documents", type=int, help="Number of documents, for all parts.")
    parser.add_argument("--cost", type=float, default=0.02, help="Budget, in nats per token of other text.")
    parser.add_argument("--done", type=Path, help="Lines of an earlier run. Its documents are not measured again.")
    arguments = parser.parse_args()
    earlier = read_lines(arguments.done) if arguments.done else []
    for model in arguments.model or ("demo:gpt2", "demo:llama"):
        setup = open_model(model)
        for part in arguments.part or [part for part in PARTS if part not in ON_SWEEP]:
            measure_part, count = PARTS[part]
            names = {"model": model, "part": part}
            more = {"done": [line for line in earlier if names.items() <= line.items()]} if part in CONTINUED else {}
            for line in measure_part(setup, arguments.documents or count, arguments.cost, model, **more):
                print(json.dumps({**names, **line}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
