"""A composite of several parts, made by one stitch per seam, each with the composite so far as model A.

After every seam there is a complete composite, which ends with the last blocks of its last model. The next stitch cuts it in that
last part. Its translation is fitted on the composite's own stream there, with the errors of earlier seams, not on the donor's.
All seams and models are scored on the same windows.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from stitch.composite.compose import check_target
from stitch.composite.parts import Part, joined, read_parts
from stitch.config import CompleteSettings, Settings
from stitch.conversions.retokenization.behind import reading
from stitch.errors import UsageError
from stitch.estimates.plan import Plan
from stitch.files.folders import to_json
from stitch.files.job import Job, run
from stitch.files.seals import is_sealed, seal
from stitch.files.stages import entered
from stitch.files.store import Store
from stitch.files.workspace import short_name
from stitch.jobs.across import lost_bytes
from stitch.jobs.chain_plan import plan_chain
from stitch.jobs.inputs import check_inputs
from stitch.jobs.join import stitch
from stitch.jobs.pair.settings import complete
from stitch.jobs.pair.text import read_corpus, windows_of
from stitch.jobs.small import tried_small
from stitch.models.device import torch_device, torch_dtype
from stitch.models.loading import load
from stitch.models.model import Model
from stitch.models.sources import Source, resolve_all
from stitch.pages.card import page_and_card
from stitch.pages.chain import chain_page
from stitch.progress import Progress
from stitch.report.card import model_card
from stitch.report.chain import chain_report

PER_SEAM = ("model_a", "model_b", "layer", "layer_b", "sae_a", "sae_b", "sae_any_hook", "native")
# What is kept of an earlier seam's folder: all but the checkpoint, as the next composite contains it.
KEPT = ("report.json", "report.html", "features.json", "features.safetensors", "sae-a", "sae-b")


def chain(
    parts: Sequence[Part] | Path,
    out: Path | None = None,
    *,
    overwrite: bool = False,
    resume: bool = False,
    restart: bool = False,
    store: Store | None = None,
    progress: Progress | None = None,
    **options,
) -> tuple[dict, Path]:
    """Joins `parts`, or those that a YAML file names, one after another and writes the composite to `out`. Returns its report and
    folder.

    `options` are fields of `Settings` that all seams share: all but models, layers, `native` and those of given SAEs. No
    reference is trained unless `reference_steps` is given. Activations and SAEs of earlier runs are taken from `store`. The
    folder also has the reports, features and SAEs of the seams before the last, in seam-1, seam-2 and so on. After an interrupt
    the same call with `resume` continues at the unfinished seam and gives the same bytes.
    Raises: UsageError when the request cannot be met, also where a tokenizer loses too much of the text; StitchError when the
    work fails. Either way nothing is left on disk.
    """

    def plan() -> Job:
        named = read_parts(parts) if isinstance(parts, Path) else parts
        asked = [
            Settings(
                model_a=early.model, model_b=late.model, layer=early.stop or 0, layer_b=late.start,
                **{"reference_steps": 0, **options},
            )
            for early, late in pairwise(named)
        ]  # fmt: skip
        models, sources = load_all(named, asked, progress)
        seams = complete_all(named, asked, models)
        shared = {name: value for name, value in seams[0].to_dict().items() if name not in PER_SEAM}
        request = {**shared, "parts": [dataclasses.asdict(part) for part in named]}

        def make(scratch: Path, output: Path) -> dict:
            corpus = read_corpus(seams[0], models[0], models[1], progress, store=store)
            # a finished seam would not read them again
            windows = windows_of(corpus, seams[0], models[0], models[1], progress)
            check_inputs(
                {f"the model of part {number}": model for number, model in enumerate(models, 1)}, windows, {}, progress
            )
            for model in models:
                if model.original is not None:
                    lost_bytes(model, windows["fit"], corpus)
            reports = _join_all(named, seams, models, sources, scratch, store, progress)
            head_alone = named[-1].start == models[-1].depth
            report = chain_report(named, reports, request, sources, head_alone=head_alone)
            # The last seam's folder becomes the chain's. If the process is killed from here on, that seam is made again.
            os.replace(scratch / f"seam-{len(seams)}", output)
            for number in range(1, len(seams)):
                keep_seam(scratch / f"seam-{number}", output / f"seam-{number}")
            page = chain_page(report, json.loads((output / "features.json").read_bytes()))
            for name, content in page_and_card(page, model_card(report)).items():
                (output / name).write_bytes(content)
            (output / "report.json").write_bytes(to_json(report))
            return report

        def planned() -> Plan:
            return plan_chain(named, seams, models, sources, store, progress)

        name = "-".join(short_name(part.model) for part in named)
        return Job(make=make, request=request, name=name, plan=planned)

    return run("chain", plan, out, overwrite=overwrite, resume=resume, restart=restart)


def _join_all(
    parts: Sequence[Part],
    seams: Sequence[CompleteSettings],
    models: Sequence[Model],
    sources: Sequence[Source],
    scratch: Path,
    store: Store | None,
    progress: Progress | None,
) -> list[dict]:
    """Makes the seams one after another, each in a folder of `scratch`, and returns their reports."""
    early, source, site = models[0], sources[0], seams[0].layer
    reports: list[dict] = []
    for number, settings in enumerate(seams, 1):
        late = models[number]
        folder = scratch / f"seam-{number}"
        entered(folder.name)
        if folder.exists() and not is_sealed(folder):
            shutil.rmtree(folder)
        report, _ = stitch(
            Settings.from_dict({**settings.to_dict(), "model_a": early.name, "layer": site}),
            folder,
            resume=True,  # has no effect unless this chain was interrupted
            store=store,
            progress=progress,
            loaded=(early, late, {"a": source, "b": sources[number]}),
        )
        seal(folder)
        reports.append(report)
        if number < len(seams):
            early = load_composite(folder, joined(parts[: number + 1]), settings)
            source = Source(early.name, folder, None, "folder")
            site += seams[number].layer - parts[number].start
    return reports


def load_all(
    parts: Sequence[Part], seams: Sequence[Settings], progress: Progress | None = None
) -> tuple[list[Model], list[Source]]:
    """A model and its source for each part. Each folder is loaded once. `seams` are the joins that are asked for.

    Models that read other tokens than the first are put behind its tokenizer (`stitch.conversions.retokenization.behind`).
    Raises: UsageError for a composite as another part than the first, and for a tokenizer that shares no token with the first.
    """
    settings = seams[0]
    dtype, device = torch_dtype(settings.dtype), torch_device(settings.device)
    sources = resolve_all(
        [part.model for part in parts],
        check=tried_small(seams),
        trust_remote_code=settings.trust_remote_code,
        progress=progress,
    )
    found: dict[Path, Model] = {}
    for source in sources:
        if (place := source.folder.resolve()) not in found:
            found[place] = load(
                source.folder,
                name=source.name,
                dtype=dtype,
                device=device,
                trust_remote_code=settings.trust_remote_code,
                progress=progress,
            )
    models = [found[source.folder.resolve()] for source in sources]
    for model in models[1:]:
        check_target(model.config, model.name)
    read = {key: reading(model, models[0]) for key, model in {id(model): model for model in models}.items()}
    return [read[id(model)] for model in models], sources


def complete_all(parts: Sequence[Part], seams: Sequence[Settings], models: Sequence[Model]) -> list[CompleteSettings]:
    """The seams' settings with defaults filled in, checked against the models before any work is done.

    All seams have the shortest context of any, so that all numbers of the report are of the same windows.
    Raises: UsageError where parts and models do not fit.
    """
    last, end = parts[-1], models[-1].depth
    if last.stop not in (None, end):
        raise UsageError(
            f"the last part runs to the end of its model, block {end} of {last.model}; got to: {last.stop}: leave `to` out."
        )
    if last.start > end:
        raise UsageError(
            f"part {len(parts)} must begin in its model, which has {end} blocks ({last.model}): `from` must be at most {end}, "
            f"for its head alone; got {last.start}."
        )
    for number, (part, model) in enumerate(zip(parts, models, strict=True), 1):
        for word, block in (("from", part.start), ("to", part.stop)):
            if block is not None and not 0 <= block <= model.depth:
                raise UsageError(
                    f"part {number} must lie in its model, which has {model.depth} blocks ({part.model}); got `{word}`: {block}."
                )
    completed = [
        complete(settings, early, late) for settings, early, late in zip(seams, models, models[1:], strict=False)
    ]
    context = min(settings.context for settings in completed)
    return [dataclasses.replace(settings, context=context) for settings in completed]


def load_composite(folder: Path, name: str, settings: CompleteSettings) -> Model:
    """The composite so far, as model A of the next stitch."""
    return load(folder, name=name, dtype=torch_dtype(settings.dtype), device=torch_device(settings.device))


def keep_seam(seam: Path, target: Path) -> None:
    """Copies the files in KEPT, an earlier seam's report, features and SAEs, to `target`."""
    target.mkdir()
    for name in KEPT:
        if (seam / name).is_dir():
            shutil.copytree(seam / name, target / name, copy_function=shutil.copyfile)
        elif (seam / name).exists():
            shutil.copyfile(seam / name, target / name)
