"""`stitch convert consolidate`: a document that stood in the context is written into the MLPs of a stock checkpoint."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from stitch.conversions.consolidation.arms import ModelAndText, arms, prepare
from stitch.conversions.consolidation.queries import (
    PrefixedQueries,
    continuations,
    cut_queries,
    gain_kept,
    label_queries,
    query_length,
    read_document,
    read_ids,
    score_queries,
    scores_with_context,
    unrelated_prefixes,
)
from stitch.conversions.consolidation.slow_weights import apply_edit, edited_parameters
from stitch.conversions.donor import Donor, read_donor
from stitch.conversions.report import difference
from stitch.conversions.save import save_stock
from stitch.errors import UsageError
from stitch.evaluation.scores import Scores
from stitch.files.output import check_output
from stitch.progress import Progress

UNSEEN = 32  # queries that the donor writes for the report where no file has them


@dataclass(frozen=True)
class Graded:
    """One row under both conditions, and its cost on other text with its interval."""

    behind_text: Scores
    bare: Scores
    cost: tuple[float, float, float]


def consolidate(
    name: str,
    document: Path,
    out: Path,
    *,
    queries: Path | None = None,
    cost: float = 0.02,
    text: str = "docs",
    tokens: int = 40_000,
    held_out: int = 65_536,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "fp32",
    trust_remote_code: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict:
    """Writes to `out` the model with the document in its down projections, scaled to cost `cost` nats per token of other text.

    The report examines it on the text of the file `queries`, or on continuations of the document that the donor writes anew.
    Raises UsageError when the request cannot be met, StitchError when weights, text or a solve fail.
    """
    check_output(out, overwrite)
    if not 0 < cost < 1:
        raise UsageError(f"--cost must be above 0 and below 1 nat per token; got {cost}.")
    donor = read_donor(
        name, text=text, tokens=tokens, held_out=held_out, device=device, dtype=dtype,
        trust_remote_code=trust_remote_code, progress=progress,
    )  # fmt: skip
    model = donor.model
    setup = prepare(model, donor.windows)
    ids = read_document(model, document)
    behind, bare = _prefixed_queries(setup, ids, queries, seed)
    graded: dict[str, Graded] = {
        "donor": Graded(score_queries(model, behind), score_queries(model, bare), (0.0, 0.0, 0.0))
    }
    ceiling = scores_with_context(behind.labelled)
    graded["reference:with context"] = Graded(ceiling, ceiling, (0.0, 0.0, 0.0))
    edits = arms(setup, ids, _other(setup, len(ids)), cost, seed)
    chosen = None
    for number, (row, make) in enumerate(edits.items()):
        edit = make()
        scale = setup.scale(edit, cost)
        changed = edited_parameters(model, edit, scale)
        graded[row] = Graded(
            score_queries(model, behind, changed),
            score_queries(model, bare, changed),
            setup.retention_cost(edit, scale),
        )
        chosen = chosen or (edit, scale)
        if progress:
            progress("rows", number + 1, len(edits))
    assert chosen is not None
    settings = {
        "context": str(document), "queries": None if queries is None else str(queries), "cost": cost, "tokens": tokens,
        "held_out": held_out, "seed": seed,
    }  # fmt: skip
    report = assemble_report(donor, document.name, len(ids), graded, settings)
    apply_edit(model, *chosen)
    save_stock(model.net, model, out, report)
    return report


def _prefixed_queries(
    setup: ModelAndText, ids: Int[Tensor, " tokens"], queries: Path | None, seed: int
) -> tuple[PrefixedQueries, PrefixedQueries]:
    """The same queries behind unrelated text, as long as the document where the windows are, and behind none."""
    model = setup.model
    generator = torch.Generator().manual_seed(seed + 1)  # other continuations than those the model learns from
    length = query_length(model)
    if queries is None:
        asked = continuations(model, ids, UNSEEN, length, generator)
    else:
        asked = cut_queries(read_ids(model, queries, "--queries"), length)
    labelled = label_queries(model, ids, asked)
    windows = setup.windows["report"]
    prefixes = unrelated_prefixes(windows, len(asked), len(ids), generator)
    return PrefixedQueries(labelled, prefixes), PrefixedQueries(labelled, prefixes[:, :0])


def _other(setup: ModelAndText, length: int) -> Int[Tensor, " tokens"]:
    """A wrong document of that length: text of the sweep split, from its end."""
    text = setup.windows["sweep"].ids[:, 1:].flatten().long()
    return text.repeat(-(-length // len(text)))[-length:]


def assemble_report(donor: Donor, title: str, document: int, graded: dict[str, Graded], settings: dict) -> dict:
    without, with_ = graded["donor"], graded["reference:with context"]
    results = []
    for name, row in graded.items():
        share = gain_kept(row.behind_text, without.behind_text, with_.behind_text)
        bare = gain_kept(row.bare, without.bare, with_.bare)
        results.append(
            {
                **row.behind_text.row(name), "kept": share[0], "kept_low": share[1], "kept_high": share[2],
                "kept_bare": bare[0], "kept_bare_low": bare[1], "kept_bare_high": bare[2],
                "retain_cost": row.cost[0], "retain_cost_low": row.cost[1], "retain_cost_high": row.cost[2],
            }
        )  # fmt: skip
    ours = next(row for row in results if row["name"] == "converted")
    scores = {name: row.behind_text for name, row in graded.items()}
    asked = len(without.behind_text.tokens)
    source = (
        "continuations that the donor wrote for the report" if settings["queries"] is None else "the file of queries"
    )
    notes = [
        f"With context: [BOS, the {document} tokens of {title}, query]; without: [BOS, unrelated text, another for each query, "
        f"query], none of it seen in the fit; 'no prefix': [BOS, query]. {asked} queries: {source}.",
        f"Gain kept: {ours['kept']:.0%} ({ours['kept_low']:.0%} to {ours['kept_high']:.0%}) behind unseen text, "
        f"{ours['kept_bare']:.0%} ({ours['kept_bare_low']:.0%} to {ours['kept_bare_high']:.0%}) with no prefix.",
        "sgd and adamw train the same matrices on passages of the document; 'adamw, queries' on the queries and answers that the "
        "converted model learns from, as many steps; 'one step' is its closed form; 'closed form' fits streams, not answers.",
        f"Every edit is scaled to cost {settings['cost']} nats per token on the sweep split; 'other text' is the cost on the "
        f"report split: {ours['retain_cost']:+.4f} ({ours['retain_cost_low']:+.4f} to {ours['retain_cost_high']:+.4f}).",
    ]
    others = [name for name in graded if name.startswith(("baseline", "null"))]
    return {
        "conversion": "consolidate",
        "model": donor.model.name,
        "title": f"{donor.model.name} with {title} in its weights",
        "made": f"The {document} tokens of {title}, which the donor would have to read in its context, are in the down "
        "projections of its MLPs; architecture and all other weights are the donor's.",
        "tokens": {
            "fit": donor.windows["fit"].tokens, "document": document, "report": int(without.behind_text.tokens.sum()),
        },
        "context": int(without.behind_text.tokens[0]),
        "results": results,
        "differences": [difference(scores, "converted", minus) for minus in ("donor", *others)],
        "notes": notes,
        "provenance": donor.provenance(settings),
    }  # fmt: skip
