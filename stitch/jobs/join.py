"""The main job: joins two models into a composite. The stages that it runs one after another are in `stitch.jobs.pair`."""

import dataclasses
import json
import shutil
from pathlib import Path

from stitch.activations.paired import Paired
from stitch.composite.checkpoint import OtherTokenizer, head_tensors, write_checkpoint
from stitch.composite.compose import compose, stitch_config
from stitch.composite.costs import Costs
from stitch.composite.splice import Splice
from stitch.composite.surgery import in_words
from stitch.config import AnySettings, CompleteSettings, Settings
from stitch.conversions.retokenization.behind import reading
from stitch.estimates.plan import Plan
from stitch.evaluation.bins import Bins
from stitch.evaluation.breakdown import breakdown
from stitch.evaluation.row_costs import row_costs
from stitch.evaluation.scoring import choose, evaluate_all, stage, train_references
from stitch.evaluation.unseen import MEAN_ROW, ids_with_row, loss_at_unseen, with_mean_rows
from stitch.features.explain import explain
from stitch.features.given import GivenSAE
from stitch.files.folders import to_json
from stitch.files.job import Clock, Job, run
from stitch.files.recipe import recipe
from stitch.files.store import Store
from stitch.files.workspace import short_name
from stitch.frontier.alternative import Means
from stitch.frontier.collect import alternatives
from stitch.frontier.untrained import why_no_untrained_a
from stitch.jobs.across import fit_across, lost_bytes
from stitch.jobs.inputs import check_inputs
from stitch.jobs.join_plan import disk_of_join, plan_join
from stitch.jobs.pair.features import check_saes, codes_of_pair, look_at_saes, match_by_block, match_pair, train_pair
from stitch.jobs.pair.models import load_any_pair
from stitch.jobs.pair.settings import check, complete
from stitch.jobs.pair.streams import bridge_pair, harvest_pair
from stitch.jobs.pair.text import read_corpus, require_all_rows, text_size, windows_of
from stitch.jobs.pair.translations import pack_pair, states_of_tokens, translate_pair
from stitch.jobs.shorten import shorten
from stitch.jobs.small import tried_small
from stitch.layers.choose import choose_layer
from stitch.models.model import Model
from stitch.models.sources import Source
from stitch.pages.card import page_and_card
from stitch.pages.join import join_page
from stitch.progress import Progress, Steps
from stitch.report.across import across_tokenizers
from stitch.report.card import model_card
from stitch.report.pair import Joined, pair_report
from stitch.text.documents import SPLITS, Split
from stitch.text.windows import tokens_of
from stitch.translation.types import Translation


def stitch(
    settings: Settings,
    out: Path | None = None,
    *,
    overwrite: bool = False,
    resume: bool = False,
    restart: bool = False,
    store: Store | None = None,
    progress: Progress | None = None,
    loaded: tuple[Model, Model, dict[str, Source]] | None = None,
) -> tuple[dict, Path]:
    """Joins two models as `settings` say and writes the composite to `out`. Returns its report and folder.

    Activations and SAEs of earlier runs are taken from `store`, and those of this one kept in it. `loaded` are the models and
    their sources as `load_any_pair` returns them; they are then not loaded by the names in `settings`.
    After an interrupt the same call with `resume` continues and gives the same bytes.
    Raises: UsageError when the request cannot be met; StitchError, SAEError or MatchError when the work fails. Either way
    nothing is left on disk.
    """
    if settings.native:
        return shorten(
            settings, out, overwrite=overwrite, resume=resume, restart=restart, store=store, progress=progress
        )
    clock = Clock()

    def plan() -> Job:
        with clock.stage("load"):
            pair = Pair.of(*(loaded or load_any_pair(settings, progress, tried_small([settings]))))
            check(settings, pair.a, pair.b)
            size = text_size(settings, pair.a, pair.b)
        if settings.layer_b == "auto":
            asked = dataclasses.replace(settings, context=size.context, tokens=size.fit)
        else:
            asked = complete(settings, pair.a, pair.b)
        given = look_at_saes(asked, pair.a, pair.b)
        check_saes(asked, given, pair.sources)

        def make(scratch: Path, output: Path) -> dict:
            return _make(asked, pair, given, scratch, output, clock, store, progress)

        def planned() -> Plan:
            chooses = asked.layer_b == "auto"
            known = complete(
                dataclasses.replace(settings, layer_b=None if chooses else settings.layer_b), pair.a, pair.b
            )
            return plan_join(known, pair.a, pair.b, pair.sources, chooses=chooses, store=store, progress=progress)

        name = f"{short_name(pair.a.name)}-{asked.layer}-{short_name(pair.b.name)}-{asked.layer_b}"
        return Job(make=make, request=asked.to_dict(), name=name, plan=planned)

    return run("join", plan, out, overwrite=overwrite, resume=resume, restart=restart)


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two loaded models, and their sources by side. B reads A's token ids, if need be as `stitch.jobs.across` says."""

    a: Model
    b: Model
    sources: dict[str, Source]

    @classmethod
    def of(cls, a: Model, b: Model, sources: dict[str, Source]) -> "Pair":
        return cls(a, reading(b, a), sources)


def _make(
    asked: AnySettings,
    pair: Pair,
    given: list[GivenSAE],
    scratch: Path,
    output: Path,
    clock: Clock,
    store: Store | None,
    progress: Progress | None,
) -> dict:
    """Runs all stages, from the text to the finished folder `output`, and returns the report."""
    a, b = pair.a, pair.b
    with clock.stage("text"):
        corpus = read_corpus(asked, a, b, progress, store=store)
        windows = windows_of(corpus, asked, a, b, progress)
        require_all_rows(windows, a)
        check_inputs({"model_a": a, "model_b": b}, windows, {"sae_a": asked.sae_a, "sae_b": asked.sae_b}, progress)
        lost = {} if b.original is None else lost_bytes(b, windows["fit"], corpus)
    layer_choice = None
    if asked.layer_b == "auto":
        with clock.stage("layer"):
            layer_choice = choose_layer(
                a, b, asked.layer, windows, scratch / "layer", memory=asked.memory, progress=progress
            )
    settings = complete(dataclasses.replace(asked, layer_b=layer_choice["b"]) if layer_choice else asked, a, b)
    disk_of_join(settings, a, b, tokens_of(windows)).require(scratch)
    sae_notes = check_saes(settings, given, pair.sources)  # again, as only now B's layer is known in any case
    with clock.stage("activations"):
        paired: dict[Split, Paired] = {}
        for split in SPLITS:
            paired[split] = harvest_pair(settings, a, b, windows[split], scratch / split, progress, store)
    across = None
    if b.original is not None:
        with clock.stage("vocabulary"):
            across = fit_across(settings, a, b, windows, stage(settings, a, b, paired["sweep"]), lost, progress)
            b = across.b
    with clock.stage("saes"):
        saes = train_pair(settings, a, b, paired, scratch, pair.sources, progress, store)
    with clock.stage("matching"):
        matching = match_pair(settings, paired["fit"], saes, scratch, progress)
        codes = codes_of_pair(settings, paired["fit"], saes, scratch, progress)
        decoders = saes.a.decoder, saes.b.decoder
        explained = explain(paired["fit"], codes, matching.graph, matching.pairs, b.tokenizer, decoders, progress)
        by_block = match_by_block(settings, a, b, windows["sweep"], saes, matching, progress)
    with clock.stage("states"):
        tokens = states_of_tokens(a, b, paired, progress)
    with clock.stage("translations"):
        fitted = translate_pair(settings, a, b, paired, saes, matching, tokens, progress)
        del tokens
        bridges = bridge_pair(settings, a, b, paired, progress)
    costs = Costs(a, b, settings.context, across.described["own_tokens_per_token"] if across else 1.0)
    with clock.stage("choice"):
        packed = pack_pair(settings, costs, fitted, paired["fit"], progress)
        chosen = choose(settings, fitted, packed, stage(settings, a, b, paired["sweep"]), progress)
        written = packed[chosen]
    with clock.stage("references"):
        references = train_references(settings, a, b, paired["fit"], fitted, progress)
    known = row_costs(costs, settings.sites, fitted, written, saes, references=references, bridges=bridges)
    if across is not None:
        known |= across.costs(costs, known["composite"])
    with clock.stage("alternatives"):
        means = Means(
            limit=known["composite"], windows=windows, context=settings.context, ngrams=settings.ngrams,
            routes=settings.routes, seed=settings.seed, memory=settings.memory, scratch=scratch / "alternatives",
            progress=progress, store=store,
        )  # fmt: skip
        rivals = alternatives(
            a, b, settings.sites, chosen, means, settings.wants, reading=across.whole if across else {}
        )
    with clock.stage("evaluation"):
        on = stage(settings, a, b, paired["report"])
        with_row = ids_with_row(written)
        bins = Bins.of(windows["fit"], settings.context, on.vocabulary, with_row)
        variants = across.variants(on, written, settings) if across else {}
        if with_row is not None:
            variants |= {MEAN_ROW: on.translated(with_mean_rows(written))}
        scores = evaluate_all(
            on, compose(a, b, *settings.sites, written), fitted, saes, wants=settings.wants, references=references,
            bridges=bridges, alternatives={name: found.logits for name, found in rivals.items()}, variants=variants,
            whole=[chosen, MEAN_ROW], bins=bins, progress=progress,
        )  # fmt: skip
        unseen = loss_at_unseen(bins, scores, on.windows, on.counted, comparable=b.original is None)
        scores.pop(MEAN_ROW, None)

    made = in_words(a, Splice(a.depth, *settings.sites), bridges) | {name: found.made for name, found in rivals.items()}
    step = Steps("report, page and files (steps)", 3, progress)
    found = Joined(
        a=a, b=b, sources=pair.sources, windows=windows, saes=saes, matching=matching, fitted=fitted, bridges=bridges,
        chosen=chosen, written=written, scores=scores, alternatives=made,
        sae_notes=sae_notes,
        costs={**known, **{name: found.cost for name, found in rivals.items()}}, pair_costs=costs,
    )  # fmt: skip
    report = pair_report(settings, found)
    if across is not None:
        report = across_tokenizers(report, across.described)
    report["provenance"]["settings"] = asked.to_dict()
    report["recipe"] = recipe("join", report["provenance"])
    shown = dict.fromkeys(["a", "b", "composite", *report["verdict"]["rivals"][:1]])
    report["breakdown"] = breakdown(bins, scores, shown, windows["report"], on.counted)
    report["look_ups"] = {**fitted.look_ups, "unseen": unseen}
    why_not = why_no_untrained_a(a, b, settings.memory)
    where_known = {
        "matching_by_block": by_block,
        "layer_choice": layer_choice,
        "not_made": why_not and {"null:untrained-a": why_not},
    }
    report |= {name: value for name, value in where_known.items() if value}
    step()
    # The page's charts are drawn by a library that takes 0.2 GB: what was reported is no longer needed.
    del found, fitted, packed, rivals
    with clock.stage("page"):
        page = join_page(report, json.loads(explained["features.json"]))
        step()
    with clock.stage("writing"):
        files = {**explained, **page_and_card(page, model_card(report))}
        step()
        _write(output, dataclasses.replace(pair, b=b), settings, written, files, scratch, progress)
    report["seconds"] = clock.seconds
    report["cache"] = store.counts() if store else {}
    (output / "report.json").write_bytes(to_json(report))
    return report


def _write(
    output: Path,
    pair: Pair,
    settings: CompleteSettings,
    translation: Translation,
    files: dict[str, bytes],
    scratch: Path,
    progress: Progress | None,
) -> None:
    """Writes the composite's checkpoint and `files` to `output`, and the SAEs that were trained in `scratch`."""
    a, b = pair.a, pair.b
    config = stitch_config(a, b, *settings.sites, translation)
    loaded = {"a": a.net, "b": b.net}
    other = None if b.original is None else OtherTokenizer(a.folder, head_tensors(b))
    write_checkpoint(
        output,
        config,
        a.folder,
        b.folder,
        translation,
        loaded=loaded,
        other=other,
        dtype=a.dtype,
        extra_files=files,
        progress=progress,
    )
    for side in "ab":
        if (scratch / f"sae-{side}").exists():
            shutil.copytree(scratch / f"sae-{side}", output / f"sae-{side}", copy_function=shutil.copyfile)
