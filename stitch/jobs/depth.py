"""Removes or repeats every range of a model's blocks, and reports loss by start and length."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from stitch.activations.harvest import Activations, harvest, windows_per_shard
from stitch.composite.cuts import exact_streams_from
from stitch.composite.splice import Splice
from stitch.composite.surgery import why_not_foldable
from stitch.config import CompleteSettings, Settings
from stitch.errors import UsageError
from stitch.estimates.plan import Plan
from stitch.evaluation.documents import counted
from stitch.evaluation.scores import Scores, evaluate, mean_of, whole_model
from stitch.files.job import Job, run
from stitch.files.recipe import recipe
from stitch.files.stages import entered
from stitch.files.store import Store
from stitch.files.workspace import short_name
from stitch.jobs.depth_plan import plan_depth
from stitch.jobs.inputs import check_inputs
from stitch.jobs.pair.models import load_pair
from stitch.jobs.pair.settings import complete
from stitch.jobs.pair.text import read_windows
from stitch.jobs.small import tried_small
from stitch.jobs.sweep_folder import write_sweep
from stitch.jobs.sweep_plan import disk_of_sweep
from stitch.layers.depth import PLAIN, DepthCell, score_depth, splices
from stitch.models.model import Model
from stitch.models.provenance import provenance
from stitch.pages.depth import depth_page
from stitch.progress import Progress
from stitch.report.depth_card import depth_card
from stitch.report.depth_figure import draw_depth
from stitch.text.documents import SPLITS, Split
from stitch.text.windows import Windows, tokens_of

TOKENS, CONTEXT = 20_000, 256  # defaults
ON_CELLS = 8_192  # tokens of the sweep split that every range is scored on
DRAWS = 3  # other ranges of the same length, beside each best one
# The settings that a depth sweep has parameters for.
PARAMETERS = (
    *("model_a", "text", "tokens", "held_out", "context", "seed"),
    *("memory", "device", "dtype", "trust_remote_code"),
)


def sweep_depth(
    model: str,
    out: Path | None = None,
    *,
    repeat: bool = False,
    lengths: Sequence[int] | None = None,
    text: str = "docs",
    tokens: int = TOKENS,
    held_out: int | None = None,
    context: int | None = None,
    seed: int = 0,
    memory: int = 4 * 2**30,
    device: str = "auto",
    dtype: str = "fp32",
    trust_remote_code: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    restart: bool = False,
    store: Store | None = None,
    progress: Progress | None = None,
) -> tuple[dict, Path]:
    """Removes every range of 1 to depth // 3 blocks of `model`, or of the `lengths`, and with `repeat` also repeats it.

    Writes report.json, report.html, README.md and depth.png to `out`; returns the report and the folder. Ranges are compared on a
    part of the sweep split; the best of each length, and random others, are scored on the report split. Activations of earlier
    runs are taken from `store`, and those of this one kept in it. After an interrupt, `resume` keeps the activations already on
    disk.
    Raises: UsageError when the request cannot be met; StitchError when the work fails. Either way nothing is left on disk.
    """

    def plan() -> Job:
        asked = Settings(
            model_a=model, model_b=model, layer=0, layer_b=0, text=text, tokens=tokens, held_out=held_out, native=True,
            seed=seed, memory=memory, device=device, dtype=dtype, trust_remote_code=trust_remote_code,
        )  # fmt: skip
        loaded, _, sources = load_pair(asked, progress, tried_small([asked]))
        if loaded.last_site < loaded.depth:
            raise UsageError(
                f"a search of blocks to remove reads the stream after the last block; in {loaded.name} no module takes it: "
                "remove blocks of your choice by `join` with `native`."
            )
        tried = list(lengths) if lengths else [*range(1, loaded.depth // 3 + 1)]
        check_lengths(loaded, tried)
        window = context if context is not None else min(CONTEXT, loaded.longest)
        completed = complete(Settings(**{**asked.to_dict(), "context": window}), loaded, loaded)
        request = {key: value for key, value in completed.to_dict().items() if key in PARAMETERS}
        request |= {"repeat": repeat, "lengths": tried}

        def make(scratch: Path, output: Path) -> dict:
            report = _make(completed, loaded, tried, repeat, scratch.resolve(), store, progress)
            about = provenance(completed.to_dict(), loaded, loaded, sources)
            report["provenance"] = {**about, "settings": request, **report["provenance"]}
            report["recipe"] = {**recipe("sweep", report["provenance"], without=("held_out", "seed")), "depth": True}
            report["cache"] = store.counts() if store else {}
            write_sweep(output, report, depth_card, depth_page, draw_depth, "depth.png")
            return report

        def planned() -> Plan:
            return plan_depth(completed, loaded, all_ranges(loaded, tried, repeat), ON_CELLS, DRAWS, store, progress)

        return Job(make=make, request=request, name=f"{short_name(loaded.name)}-depth", plan=planned)

    return run("sweep", plan, out, overwrite=overwrite, resume=resume, restart=restart)


def check_lengths(model: Model, lengths: Sequence[int]) -> None:
    """Raises UsageError unless there is a range of every length that can be removed."""
    if not lengths or not all(0 < length < model.depth for length in lengths):
        raise UsageError(
            f"lengths must be in 1..{model.depth - 1} for {model.name}, which has {model.depth} blocks; got "
            f"{', '.join(map(str, lengths)) or 'none'}."
        )


def all_ranges(model: Model, lengths: Sequence[int], repeat: bool) -> list[Splice]:
    """Every range of these lengths removed, and with `repeat` also run twice."""
    removed = splices(model.depth, lengths, repeat=False)
    return removed + (splices(model.depth, lengths, repeat=True) if repeat else [])


def _make(
    settings: CompleteSettings,
    model: Model,
    lengths: list[int],
    repeat: bool,
    scratch: Path,
    store: Store | None,
    progress: Progress | None,
) -> dict:
    """Harvests streams, scores every range, and returns the report, whose provenance so far is that of the text."""
    windows = read_windows(settings, model, model, progress, store=store)
    check_inputs({"model_a": model}, windows, {}, progress)
    disk_of_sweep([model], tokens_of(windows)).require(scratch)
    entered("activations")
    windows["sweep"] = windows["sweep"].first(ON_CELLS)
    streams: dict[Split, Activations] = {
        split: _harvest(settings, model, windows[split], scratch / split, store, progress) for split in SPLITS
    }
    entered("scores")
    # Some models can be cut but not bridged, such as those with more neurons than `memory` has room for.
    bridge = why_not_foldable(model, 1, 0, settings.memory) is None
    arguments = {"bridge": bridge, "memory": settings.memory}
    cells = score_depth(
        model, all_ranges(model, lengths, repeat), streams, streams["sweep"], **arguments, progress=progress
    )
    best = _best(cells)
    draws = {splice: splice.drawn(DRAWS, settings.seed) for splice in best}
    again = list(dict.fromkeys(splice for one in best for splice in (one, *draws[one])))
    shown = score_depth(model, again, streams, streams["report"], **arguments, progress=progress)
    whole = {split: _whole(model, windows[split], settings.memory) for split in ("sweep", "report")}
    return {
        "provenance": windows["fit"].provenance,
        "models": {"a": model.name},
        "depth": model.depth,
        "context": settings.context,
        "tokens": tokens_of(windows),
        "documents": counted(whole["report"]),
        "whole": {"sweep_ce": whole["sweep"].ce, **whole["report"].row("whole")},
        "cells": [_cell(splice, cell) for splice, cell in cells.items()],
        "best": [
            {"best_in": names, **_shown(splice, shown, draws[splice], whole["report"])}
            for splice, names in best.items()
        ],
    }


def _harvest(
    settings: CompleteSettings,
    model: Model,
    windows: Windows,
    folder: Path,
    store: Store | None,
    progress: Progress | None,
) -> Activations:
    sites = range(model.depth + 1)
    per_shard = windows_per_shard(windows.context, model.width * len(sites), model.dtype, settings.memory)
    return harvest(
        model, windows, sites, folder, per_shard=per_shard, store=store, late=exact_streams_from, progress=progress
    )


@torch.no_grad()
def _whole(model: Model, windows: Windows, memory: int) -> Scores:
    rows = {"whole": whole_model(model.net)}
    return evaluate(rows, windows, vocabulary=model.vocabulary, memory=memory)["whole"]


def _best(cells: Mapping[Splice, DepthCell]) -> dict[Splice, list[str]]:
    """The ranges with the lowest loss of their kind and length on the sweep split, each with the rows in which it has that."""
    found: dict[tuple[bool, int, str], Splice] = {}
    for splice, cell in cells.items():
        for row, scores in cell.scores.items():
            key = splice.removes, len(splice.changed), row
            if key not in found or scores.ce < cells[found[key]].scores[row].ce:
                found[key] = splice
    best: dict[Splice, list[str]] = {}
    for (_, _, row), splice in found.items():
        best.setdefault(splice, []).append(row)
    return best


def _names(splice: Splice) -> dict:
    return {
        "change": "removed" if splice.removes else "repeated",
        "first": splice.changed[0],
        "length": len(splice.changed),
        "layers": [splice.early, splice.late],
        "blocks": len(splice.order),
    }


def _cell(splice: Splice, cell: DepthCell) -> dict:
    losses = {name: scores.ce for name, scores in cell.scores.items()}
    return {**_names(splice), "sweep_ce": losses, "lambda": cell.strength, "unexplained": cell.unexplained}


def _shown(splice: Splice, shown: Mapping[Splice, DepthCell], others: Sequence[Splice], whole: Scores) -> dict:
    """The best range of its length on the report split: each row with its paired difference to the whole model, and with the
    null, the mean of other ranges."""
    rows = []
    for name, scores in shown[splice].scores.items():
        row = {**scores.row(name), "minus_whole": scores.difference(whole)}
        if others:
            null = mean_of([shown[other].scores[name] for other in others])
            row |= {"null_ce": null.ce, "null_minus": null.difference(scores)}
        if name != PLAIN:
            row["minus_passthrough"] = scores.difference(shown[splice].scores[PLAIN])
        rows.append(row)
    return {**_names(splice), "rows": rows, "null": [other.changed[0] for other in others]}
