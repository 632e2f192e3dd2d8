"""The main job: each stage once, in order, resumable. Reads as a table of contents; the stages live in `stitch.jobs.stages`."""

import dataclasses
import shutil
from pathlib import Path

from stitch.activations.paired import Paired
from stitch.composite.checkpoint import write_checkpoint
from stitch.composite.compose import compose, stitch_config
from stitch.config import Settings
from stitch.evaluation.scoring import choose, evaluate_all, stage, train_references
from stitch.features.explain import explain
from stitch.files.folders import to_json
from stitch.files.workspace import check_output, finished, publish, short_name, workspace
from stitch.jobs.shorten import shorten
from stitch.jobs.stages import (
    bridge_pair,
    codes_of_pair,
    complete,
    harvest_pair,
    load_pair,
    match_pair,
    read_windows,
    train_pair,
    translate_pair,
)
from stitch.jobs.timing import timed
from stitch.layers.choose import choose_layer
from stitch.models.model import Model
from stitch.models.sources import Source
from stitch.progress import Progress
from stitch.report.card import model_card
from stitch.report.pair import assemble
from stitch.text.documents import SPLITS, Split


def stitch(
    settings: Settings,
    out: Path | None = None,
    *,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
    loaded: tuple[Model, Model, dict[str, Source]] | None = None,
) -> tuple[dict, Path]:
    """Stitches two models as `settings` ask, writes the composite to `out`, returns its report and folder.

    `loaded` are the models and where they are from, what `load_pair` would give; the settings' names then only name them.
    Raises UsageError when the request cannot be met, StitchError (SAEError, MatchError) when the work fails; either way
    nothing is left on disk. After an interrupt the same call with `resume` goes on and ends with the same bytes.
    """
    if settings.native:
        return shorten(settings, out, overwrite=overwrite, resume=resume, progress=progress)
    seconds: dict[str, float] = {}
    if out is not None and not resume:
        check_output(out, overwrite)  # before anything takes time
    with timed(seconds, "load"):
        a, b, sources = loaded or load_pair(settings, progress)
        settings = complete(settings, a, b)
        request = settings.to_dict()
    if out is None:
        out = Path(f"{short_name(a.name)}-{settings.layer}-{short_name(b.name)}-{settings.layer_b}")
    if resume and (report := finished(out, request)) is not None:
        return report, out
    check_output(out, overwrite)

    with workspace(out, request, resume) as work:
        with timed(seconds, "text"):
            windows = read_windows(settings, b, progress)
        layer_choice = None
        if settings.layer_b == "auto":
            with timed(seconds, "layer"):
                layer_choice = choose_layer(
                    a, b, settings.layer, windows, work / "layer", memory=settings.memory, progress=progress
                )
                settings = dataclasses.replace(settings, layer_b=layer_choice["b"])
        assert isinstance(settings.layer_b, int)
        sites = settings.layer, settings.layer_b
        with timed(seconds, "activations"):
            paired: dict[Split, Paired] = {}
            for split in SPLITS:
                paired[split] = harvest_pair(settings, a, b, windows[split], work / split, progress)
        with timed(seconds, "saes"):
            saes = train_pair(settings, a, b, paired, work, sources, progress)
        with timed(seconds, "matching"):
            matching = match_pair(settings, paired["fit"], saes, work, progress)
            codes = codes_of_pair(settings, paired["fit"], saes, work)
            explained = explain(paired["fit"], codes(), matching.graph, matching.pairs, b.tokenizer)
        with timed(seconds, "translations"):
            fitted = translate_pair(settings, a, b, paired, saes, matching, progress)
            bridges = bridge_pair(settings, a, b, paired, progress)
        with timed(seconds, "choice"):
            chosen = choose(settings, fitted, stage(settings, a, b, paired["sweep"]), progress)
        with timed(seconds, "references"):
            references = train_references(settings, a, b, paired["fit"], fitted, progress)
        config = stitch_config(a.config, b.config, *sites, fitted.translations[chosen], b.bos)
        with timed(seconds, "evaluation"):
            composite = compose(a, b, *sites, fitted.translations[chosen])
            report_stage = stage(settings, a, b, paired["report"])
            extra = {"wants": settings.wants, "references": references, "bridges": bridges, "progress": progress}
            scores = evaluate_all(report_stage, composite, fitted, saes, **extra)

        report = assemble(settings, a, b, sources, windows, saes, matching, fitted, bridges, chosen, scores)
        report["provenance"]["settings"] = request
        if layer_choice is not None:
            report["layer_choice"] = layer_choice
        with timed(seconds, "writing"):
            files = {"report.json": to_json(report), "README.md": model_card(report), **explained}
            folder = work / "composite"
            shutil.rmtree(folder, ignore_errors=True)
            write_checkpoint(
                folder,
                config,
                a.folder,
                b.folder,
                fitted.translations[chosen],
                dtype=a.dtype,
                extra_files=files,
            )
            for side in "ab":
                if (work / f"sae-{side}").exists():
                    shutil.copytree(work / f"sae-{side}", folder / f"sae-{side}", copy_function=shutil.copyfile)
            report["seconds"] = {name: round(value, 2) for name, value in seconds.items()}
            (folder / "report.json").write_bytes(to_json(report))
            publish(folder, out, work)
    return report, out
