"""Depth surgery (`native`): one model with some blocks removed or repeated, as a standard checkpoint of its family.

No SAE is trained and nothing is matched, so it takes minutes where the main job takes an hour.
"""

from functools import partial
from pathlib import Path

import torch

from stitch.activations.harvest import Activations
from stitch.activations.paired import Paired
from stitch.composite.bridges import FITTED
from stitch.composite.costs import Cost, Costs
from stitch.composite.native import with_blocks, write_native
from stitch.composite.splice import Splice
from stitch.composite.surgery import (
    TRANSLATIONS,
    Bridge,
    bridged,
    described,
    in_words,
    parameters_of,
    refits,
    why_not_foldable,
    why_not_spliced,
)
from stitch.config import CompleteSettings, Settings
from stitch.errors import UsageError
from stitch.evaluation.bins import Bins
from stitch.evaluation.breakdown import breakdown
from stitch.evaluation.comparisons import differences, ranked, verdict
from stitch.evaluation.documents import counted as counted_documents
from stitch.evaluation.row_costs import surgery_costs
from stitch.evaluation.scores import Logits, Scores, evaluate, mean_of
from stitch.evaluation.scoring import stage
from stitch.evaluation.stage import Stage
from stitch.files.folders import to_json
from stitch.files.job import Clock, Job, run
from stitch.files.recipe import recipe
from stitch.files.store import Store
from stitch.files.workspace import short_name
from stitch.frontier.alternative import Alternative
from stitch.jobs.inputs import check_inputs
from stitch.jobs.other_ranges import bridge_ranges, other_ranges, sites_of_ranges
from stitch.jobs.pair.models import load_any_pair
from stitch.jobs.pair.settings import complete
from stitch.jobs.pair.streams import bridge_pair, harvest_pair
from stitch.jobs.pair.text import read_windows
from stitch.jobs.shorten_plan import disk_of_shortened, plan_shorten
from stitch.jobs.shorten_rivals import means_of, rivals
from stitch.jobs.small import tried_small
from stitch.models.donor_code import brings_code
from stitch.models.flops import block_parameters
from stitch.models.model import Model
from stitch.models.provenance import provenance
from stitch.models.sources import Source
from stitch.pages.card import page_and_card
from stitch.pages.join import join_page
from stitch.progress import Progress, counted
from stitch.regression.moments import accumulate
from stitch.regression.ridge import ridge
from stitch.report.card import model_card
from stitch.text.documents import SPLITS, Split
from stitch.text.windows import Windows, tokens_of
from stitch.translation import rows as registry
from stitch.translation.inputs import Stream, streams
from stitch.translation.least_squares import from_ridge
from stitch.translation.token_tables import token_tables
from stitch.translation.types import Translation

CHUNK = 8192  # tokens read at a time


def shorten(
    settings: Settings,
    out: Path | None = None,
    *,
    overwrite: bool = False,
    resume: bool = False,
    restart: bool = False,
    store: Store | None = None,
    progress: Progress | None = None,
) -> tuple[dict, Path]:
    """Writes a model's first `layer` blocks and those from `layer_b` on, bridged, as a standard checkpoint.

    With `layer` < `layer_b` the blocks between are removed, with `layer` > `layer_b` they run twice. Returns report and folder.

    Activations of earlier runs are taken from `store`, and those of this one kept in it. After an interrupt the same call with
    `resume` continues and gives the same bytes.
    Raises: UsageError when the request cannot be met; StitchError when the work fails. Either way nothing is left on disk.
    """
    clock = Clock()

    def plan() -> Job:
        check_translation(settings)
        if settings.layer_b == "auto":
            raise UsageError("layer_b must be a block's number with `native`; got auto: name the block.")
        with clock.stage("load"):
            model, other, sources = load_any_pair(settings, progress, tried_small([settings]))
            if other is not model:
                raise UsageError(
                    f"`native` changes one model, so `model_a` and `model_b` must be the same; got {model.name} and "
                    f"{other.name}: leave `native` out, or name one model twice."
                )
            completed = complete(settings, model, model)
        check_foldable(completed, model)
        splice = Splice(model.depth, *completed.sites)

        def make(scratch: Path, output: Path) -> dict:
            return _make(completed, model, sources, scratch, output, clock, store, progress)

        name = f"{short_name(model.name)}-{splice.in_words.replace(' ', '-')}"
        plan = partial(plan_shorten, completed, model, store, progress)
        return Job(make=make, request=completed.to_dict(), name=name, plan=plan)

    return run("join", plan, out, overwrite=overwrite, resume=resume, restart=restart)


def _make(
    settings: CompleteSettings,
    model: Model,
    sources: dict[str, Source],
    scratch: Path,
    output: Path,
    clock: Clock,
    store: Store | None,
    progress: Progress | None,
) -> dict:
    """Runs all stages, from the text to the finished folder `output`, and returns the report."""
    splice = Splice(model.depth, *settings.sites)
    with clock.stage("text"):
        windows = read_windows(settings, model, model, progress, store=store)
        check_inputs({"model_a": model}, windows, {}, progress)
    disk_of_shortened(settings, model, tokens_of(windows)).require(scratch)
    drawn = other_ranges(model, settings)
    with clock.stage("activations"):
        paired: dict[Split, Paired] = {}
        for split in SPLITS:
            also = sites_of_ranges(model, drawn, settings) if split in FITTED else []
            paired[split] = harvest_pair(settings, model, model, windows[split], scratch / split, progress, store, also)
    with clock.stage("translations"):
        bridges = bridge_pair(settings, model, model, paired, progress) or {"reference:passthrough": Bridge({})}
        adapters = _adapters(settings, model, paired, progress)
    with clock.stage("choice"):
        chosen = _choose(settings, bridges, stage(settings, model, model, paired["sweep"]), progress)
    with clock.stage("other ranges"):
        fitted_on: dict[Split, Activations] = {split: paired[split].a for split in FITTED}
        others = bridge_ranges(chosen, model, drawn, fitted_on, settings.memory, progress)
    costs = surgery_costs(Costs(model, model, settings.context), splice, bridges, adapters, others)
    with clock.stage("alternatives"):
        means = means_of(settings, windows, costs[chosen], scratch / "alternatives", progress, store)
        alternatives = rivals(model, splice, chosen, means)
    with clock.stage("evaluation"):
        bins = Bins.of(windows["fit"], settings.context, model.vocabulary)
        on = stage(settings, model, model, paired["report"])
        scores = _evaluate(on, bridges, adapters, alternatives, others, chosen, bins, progress)
    costs |= {"composite": costs[chosen], **{name: found.cost for name, found in alternatives.items()}}
    made = {**in_words(model, splice, bridges), **{name: found.made for name, found in alternatives.items()}}
    report = _surgery_report(settings, model, sources, windows, bridges, chosen, scores, costs, made)
    report["native"]["other_ranges"] = [other.in_words for other in others]
    shown = dict.fromkeys(["b", "composite", *(row for row in report["verdict"]["rivals"][:1] if row != "a")])  # A is B
    report["breakdown"] = breakdown(bins, scores, shown, windows["report"])
    with clock.stage("writing"):
        changed = parameters_of(with_blocks(model, splice.order), bridges[chosen])
        files = page_and_card(join_page(report), model_card(report, remote_code=brings_code(model.config)))
        write_native(output, model, splice.order, changed, extra_files=files)
    report["seconds"] = clock.seconds
    report["cache"] = store.counts() if store else {}
    (output / "report.json").write_bytes(to_json(report))
    return report


def check_foldable(settings: CompleteSettings, model: Model) -> None:
    """Raises UsageError when the blocks cannot be removed or repeated, or bridged by the model's own weights.

    Where no down projection is known, as in mixtures of experts, nothing is refitted unless that was asked for.
    """
    if not refits(model) and settings.translation in ("auto", "identity"):
        reason = why_not_spliced(model, *settings.sites)
    else:
        reason = why_not_foldable(model, *settings.sites, settings.memory)
    if reason is not None:
        raise UsageError(reason)
    if settings.translation == "down-projections" and max(settings.sites) == model.depth:
        raise UsageError(
            f"translation down-projections also changes the block after the seam; {model.name} has none there: choose "
            "down-projection."
        )


def check_translation(settings: Settings) -> None:
    """Raises UsageError when the requested translation does not fold into the model's weights."""
    allowed = ("auto", "identity", *TRANSLATIONS)
    if settings.translation not in allowed:
        raise UsageError(
            f"translation must fold into the model's weights with `native`: {', '.join(allowed)}; got "
            f"{settings.translation}: choose one of these, or leave `native` out."
        )


def _choose(settings: CompleteSettings, bridges: dict[str, Bridge], on: Stage, progress: Progress | None) -> str:
    """Row name of the bridge to write: the one that the settings name, or the best on the sweep split."""
    if settings.translation != "auto":
        return TRANSLATIONS.get(settings.translation, "reference:passthrough")
    scores = evaluate(
        {name: _row(on, bridge) for name, bridge in bridges.items() if bridge.folds and not name.startswith("null:")},
        on.windows, vocabulary=on.vocabulary, memory=on.memory, progress=progress, task="choice (tokens)",
    )  # fmt: skip
    return min(scores, key=lambda name: scores[name].ce)


def _row(on: Stage, bridge: Bridge) -> Logits:
    return on.whole(bridged(on.a, Splice(on.a.depth, on.site_a, on.site_b), bridge).net)


def _evaluate(
    on: Stage,
    bridges: dict[str, Bridge],
    adapters: dict[str, Translation],
    alternatives: dict[str, Alternative],
    others: dict[Splice, Bridge],
    chosen: str,
    bins: Bins,
    progress: Progress | None,
) -> dict[str, Scores]:
    """Scores of the whole model, every bridge, the adapters that a composite would have instead, alternatives, other ranges."""
    rows = {"b": on.whole(on.b.net), **{name: _row(on, bridge) for name, bridge in bridges.items()}}
    rows |= {name: on.translated(translation) for name, translation in adapters.items()}
    rows |= {name: found.logits for name, found in alternatives.items()}
    rows |= {other.in_words: on.whole(bridged(on.a, other, bridge).net) for other, bridge in others.items()}
    could_be_used = {row.name for row in registry.ROWS if row.alternative}
    scores = evaluate(
        rows, on.windows, vocabulary=on.vocabulary, reference=rows["b"], memory=on.memory, bins=bins,
        binned={"b", chosen, *could_be_used}, progress=progress,
    )  # fmt: skip
    draws = [scores.pop(other.in_words) for other in others]
    return {
        "a": scores["b"],
        "composite": scores[chosen],
        **scores,
        **({"null:random-range": mean_of(draws)} if draws else {}),
    }  # A and B are the same; the new model is the chosen row


@torch.no_grad()
def _adapters(
    settings: CompleteSettings, model: Model, paired: dict[Split, Paired], progress: Progress | None
) -> dict[str, Translation]:
    """The rows `affine` and `affine+token`, fitted as in the main job. In a composite they would be an additional module."""
    first = paired["fit"].b.first(settings.layer_b)
    tokens = token_tables(model, model, paired["fit"].a.windows, paired["sweep"].a.windows, None, progress)
    inputs = {"x": Stream(settings.layer), "embedding": tokens.input("embedding")}
    reads = {name: registry.row(name).reads for name in ("translation:affine", "translation:affine+token")}
    pairs = [("x", "x"), ("x", "embedding"), ("embedding", "embedding"), ("x", "target"), ("embedding", "target")]

    def variables(split: Split):
        text, most = paired[split], paired[split].tokens // CHUNK + paired[split].a.shards
        chunks = text.with_history(streams(inputs.values()), 0, CHUNK)
        for tokens in counted(chunks, f"moments of adapters on the {split} split (chunks, at most)", progress, most):
            yield {name: found.columns(tokens) for name, found in inputs.items()} | {"target": tokens.target}

    fit, sweep = (accumulate(variables(split), pairs) for split in ("fit", "sweep"))
    return {
        name: from_ridge(name, ridge(fit, sweep, read), inputs).starting_with(first) for name, read in reads.items()
    }


def _surgery_report(
    settings: CompleteSettings,
    model: Model,
    sources: dict[str, Source],
    windows: dict[Split, Windows],
    bridges: dict[str, Bridge],
    chosen: str,
    scores: dict[str, Scores],
    costs: dict[str, Cost],
    alternatives: dict[str, str],
) -> dict:
    """report.json, with the timings still to be filled in. It has those keys of the main job's report that apply."""
    splice = Splice(model.depth, *settings.sites)
    # References are compared with the new model, whichever bridge it has.
    compared = {
        name: "composite" if name.startswith("reference:") else other
        for name, other in registry.compared_with().items()
    }
    surroundings = {**provenance(settings.to_dict(), model, model, sources), **windows["fit"].provenance}
    return {
        "verdict": verdict(scores, costs, itself={"b", chosen}),  # b is a
        "alternatives": alternatives,
        "models": {"a": model.name, "b": model.name},
        "site": {"a": settings.layer, "b": settings.layer_b},
        "native": {
            "family": model.anatomy.family,
            "blocks": len(splice.order),
            "of": model.depth,
            "change": splice.in_words,
            "order": splice.order,
            "weights_removed" if splice.removes else "weights_added": sum(
                block_parameters(model.config, block) for block in splice.changed
            ),
        },
        "tokens": tokens_of(windows),
        "documents": counted_documents(scores["b"]),
        "ridge": described(bridges),
        "results": [{**scores[name].row(name), **costs[name].to_dict()} for name in ranked(scores)],
        "differences": differences(scores, compared),
        "chosen": chosen.partition(":")[2],
        "seconds": {},
        "provenance": surroundings,
        "recipe": recipe("join", surroundings),
    }
