"""Joins two models at every pair of layers, in both directions, and reports score and cost of every composite."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from stitch.composite.compose import check_target
from stitch.composite.costs import Cost
from stitch.composite.cuts import require_exact_everywhere
from stitch.config import CompleteSettings, Settings
from stitch.errors import UsageError, require_extra
from stitch.evaluation.documents import counted
from stitch.evaluation.scores import Scores, evaluate, whole_model
from stitch.files.job import Job, run
from stitch.files.recipe import recipe
from stitch.files.stages import entered
from stitch.files.store import Store
from stitch.files.workspace import short_name
from stitch.frontier.alternative import Means
from stitch.jobs.cluster import connected
from stitch.jobs.inputs import check_inputs
from stitch.jobs.pair.models import load_pair
from stitch.jobs.pair.settings import complete
from stitch.jobs.pair.text import read_windows
from stitch.jobs.small import tried_small_everywhere
from stitch.jobs.sweep_folder import write_sweep
from stitch.jobs.sweep_plan import disk_of_sweep, plan_sweep
from stitch.jobs.sweep_report import sweep_report
from stitch.jobs.sweep_rivals import from_cells, own_cells, whole_models, with_tables
from stitch.jobs.sweep_tasks import harvest_on, score_on
from stitch.layers.cells import score_cells
from stitch.layers.streams import Cell, Harvest, Side, harvest_all
from stitch.models.model import Model
from stitch.models.provenance import provenance
from stitch.pages.sweep import sweep_page
from stitch.progress import Progress
from stitch.report.sweep_card import sweep_card
from stitch.report.sweep_figure import draw_sweep
from stitch.text.documents import SPLITS
from stitch.text.windows import tokens_of

HELD_OUT = 16_384  # tokens of each held-out split, where its windows are not too few; every cell is scored on both
SPLITS_SCORED = ("sweep", "report")
UNLIMITED = Cost(flops=float("inf"), bytes=2**62)
# The settings that a sweep has parameters for.
PARAMETERS = (
    *("model_a", "model_b", "text", "tokens", "context"),
    *("memory", "device", "dtype", "trust_remote_code"),
)


def sweep(
    model_a: str,
    model_b: str,
    out: Path | None = None,
    *,
    text: str = "docs",
    tokens: int = 100_000,
    context: int | None = None,
    memory: int = 4 * 2**30,
    device: str = "auto",
    dtype: str = "fp32",
    trust_remote_code: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    restart: bool = False,
    cluster: str | None = None,
    store: Store | None = None,
    progress: Progress | None = None,
) -> tuple[dict, Path]:
    """Joins the two models at every pair of layers and writes report.json, report.html, README.md and sweep.png to `out`.

    Returns the report and the folder. λ and every choice (fronts, best layers) come from the sweep split, all numbers shown from
    the report split. Activations of earlier runs are taken from `store`, and those of this one kept in it. After an interrupt,
    `resume` keeps the activations already on disk.
    `cluster` is the address of a Ray cluster to spread the work on (see `stitch.jobs.cluster.connected`); all its machines must
    see the folder that holds `out`. Its workers know nothing of `store`, which is then not used.
    Raises: UsageError when the request cannot be met; StitchError when the work fails. Either way nothing is left on disk.
    """
    if cluster:
        require_extra("cluster", "`cluster`")
    settings = Settings(
        model_a=model_a, model_b=model_b, layer=0, layer_b=0, text=text, tokens=tokens, context=context,
        memory=memory, device=device, dtype=dtype, trust_remote_code=trust_remote_code,
    )  # fmt: skip

    used = None if cluster else store

    def plan() -> Job:
        a, b, sources = load_pair(settings, progress, tried_small_everywhere(trust_remote_code))
        for model in (a, b):
            check_target(model.config, model.name)  # both directions are tried
            if model.depth < 2:
                raise UsageError(f"a sweep needs models of at least 2 blocks; {model.name} has {model.depth}.")
            require_exact_everywhere(model)
        completed = complete(settings, a, b)
        request = {key: value for key, value in completed.to_dict().items() if key in PARAMETERS}

        def make(scratch: Path, output: Path) -> dict:
            report = _make(completed, {"a": a, "b": b}, scratch.resolve(), cluster, used, progress)
            about = provenance(completed.to_dict(), a, b, sources)
            report["provenance"] = {**about, "settings": request, **report["provenance"]}
            report["recipe"] = recipe("sweep", report["provenance"], without=("held_out", "seed"))
            report["cache"] = used.counts() if used else {}
            write_sweep(output, report, sweep_card, sweep_page, draw_sweep, "sweep.png")
            return report

        return Job(
            make=make, request=request, name=f"{short_name(a.name)}-{short_name(b.name)}-sweep",
            plan=lambda: plan_sweep(completed, {"a": a, "b": b}, all_cells(a, b), HELD_OUT, used, progress),
        )  # fmt: skip

    return run("sweep", plan, out, overwrite=overwrite, resume=resume, restart=restart)


def _make(
    settings: CompleteSettings,
    models: dict[Side, Model],
    scratch: Path,
    cluster: str | None,
    store: Store | None,
    progress: Progress | None,
) -> dict:
    """Harvests activations, scores every pair of layers, and returns the report, whose provenance so far is that of the text."""
    a, b = models["a"], models["b"]
    context = settings.context
    with ExitStack() as stack:
        workers = stack.enter_context(connected(cluster, on_gpu=a.device.type == "cuda")) if cluster else None
        windows = read_windows(settings, a, b, progress, HELD_OUT, store=store)
        check_inputs({"model_a": a, "model_b": b}, windows, {}, progress)
        disk_of_sweep([*dict.fromkeys((a, b))], tokens_of(windows)).require(scratch)
        entered("activations")
        sites: dict[Side, Sequence[int]] = {side: range(model.depth + 1) for side, model in models.items()}
        harvests: dict[str, Harvest] = {}
        for split in SPLITS:
            if workers:
                harvest_on(workers, settings, windows[split], sites, scratch / split, progress)
            harvests[split] = harvest_all(
                models, windows[split], sites, scratch / split, settings.memory, progress, store=store
            )
        fit, held_out = harvests["fit"], {split: harvests[split] for split in SPLITS_SCORED}
        cells = [*all_cells(a, b), *own_cells(models)]
        entered("scores")
        if workers:
            found = score_on(workers, settings, cells, fit, held_out, "report", progress)
        else:
            found = score_cells(
                models, cells, fit, held_out, reference="report", memory=settings.memory, progress=progress
            )
        donors = _score_donors(models, held_out, settings.memory, progress)
        means = Means(
            limit=UNLIMITED, windows=windows, context=context, ngrams=settings.ngrams, routes=0,
            seed=settings.seed, memory=settings.memory, scratch=scratch / "alternatives", progress=progress,
        )  # fmt: skip
        whole = whole_models(models, donors, context)
        alternatives = [*with_tables(models, means, held_out), *from_cells(models, found, context)]
        report = sweep_report(models, context, found, whole, alternatives)
        report["provenance"] = windows["fit"].provenance
        report["documents"] = counted(donors["b"]["report"])
        report["tokens"] = {
            **tokens_of(windows),
            "fitted_on": int(fit.keep.sum()),
        }
    return report


def all_cells(a: Model, b: Model) -> list[Cell]:
    """Every pair of sites in both directions, or in one if both models are the same."""
    there = [Cell("a", i, "b", j) for i in range(a.depth + 1) for j in range(b.depth + 1)]
    back = [Cell("b", i, "a", j) for i in range(b.depth + 1) for j in range(a.depth + 1)]
    return there if a is b else there + back


@torch.no_grad()
def _score_donors(
    models: dict[Side, Model], held_out: dict[str, Harvest], memory: int, progress: Progress | None
) -> dict[Side, dict[str, Scores]]:
    """Scores of both whole models on the same windows as the composites, by side and split."""
    vocabulary = min(model.vocabulary for model in models.values())
    by_split = {
        split: evaluate(
            {side: whole_model(model.net) for side, model in models.items()}, one.windows, vocabulary=vocabulary,
            memory=memory, progress=progress, task=f"both models, {split} split (tokens)",
        )
        for split, one in held_out.items()
    }  # fmt: skip
    return {side: {split: scores[side] for split, scores in by_split.items()} for side in models}
