"""Several seams in one composite: a loop over ordinary stitches, each fitted on what the composite so far computes.

After every seam there is a whole composite, which ends as its last model does. The next seam cuts it in that last part: its
translation is fitted on the stream that the composite has there, errors of the earlier seams included, not on the donor's.
All seams and models are scored on the same windows.
"""

import dataclasses
import os
import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from stitch.composite.compose import check_target
from stitch.composite.parts import Part, joined, read_parts
from stitch.config import CompleteSettings, Settings
from stitch.errors import UsageError
from stitch.files.folders import to_json
from stitch.files.job import Job, run
from stitch.files.workspace import short_name
from stitch.jobs.join import stitch
from stitch.jobs.stages import complete
from stitch.models.device import torch_device, torch_dtype
from stitch.models.loading import load
from stitch.models.model import Model
from stitch.models.sources import Source, resolve
from stitch.progress import Progress
from stitch.report.card import model_card
from stitch.report.chain import chain_report
from stitch.text.tokenizers import require_same_ids

OF_ONE_SEAM = ("model_a", "model_b", "layer", "layer_b", "sae_a", "sae_b", "native")
# What a seam's folder holds beside the checkpoint that the next one replaces.
KEPT = ("report.json", "features.json", "features.safetensors", "sae-a", "sae-b")


def chain(
    parts: Sequence[Part] | Path,
    out: Path | None = None,
    *,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
    **options,
) -> tuple[dict, Path]:
    """Joins `parts`, or those that a YAML file names, one after another; writes the composite to `out`, returns its report and
    folder.

    `options` are those of `Settings` that all seams share: all but models, layers, `sae_a`, `sae_b` and `native`. No reference
    is trained unless `reference_steps` asks for it. The folder also holds, in seam-1, seam-2, …, what the seams before the last
    leave beside their checkpoints.
    Raises UsageError when the request cannot be met, StitchError when the work fails; either way nothing is left on disk.
    After an interrupt the same call with `resume` goes on at the seam it was at and ends with the same bytes.
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
        models, sources = load_all(named, asked[0], progress)
        seams = complete_all(named, asked, models)
        shared = {name: value for name, value in seams[0].to_dict().items() if name not in OF_ONE_SEAM}
        request = {**shared, "parts": [dataclasses.asdict(part) for part in named]}

        def make(scratch: Path, output: Path) -> dict:
            reports = _join_all(named, seams, models, sources, scratch, progress)
            report = chain_report(named, reports, request, sources)
            # From here on a kill costs the last seam again: its folder becomes the chain's.
            os.replace(scratch / f"seam-{len(seams)}", output)
            for number in range(1, len(seams)):
                keep_beside(scratch / f"seam-{number}", output / f"seam-{number}")
            (output / "README.md").write_bytes(model_card(report))
            (output / "report.json").write_bytes(to_json(report))
            return report

        return Job(make=make, request=request, name="-".join(short_name(part.model) for part in named))

    return run("chain", plan, out, overwrite=overwrite, resume=resume)


def _join_all(
    parts: Sequence[Part],
    seams: Sequence[CompleteSettings],
    models: Sequence[Model],
    sources: Sequence[Source],
    scratch: Path,
    progress: Progress | None,
) -> list[dict]:
    """Makes the seams one after another, each in its own folder of `scratch`; returns their reports."""
    early, source, site = models[0], sources[0], seams[0].layer
    reports: list[dict] = []
    for number, settings in enumerate(seams, 1):
        late = models[number]
        folder = scratch / f"seam-{number}"
        report, _ = stitch(
            Settings.from_dict({**settings.to_dict(), "model_a": early.name, "layer": site}),
            folder,
            resume=True,  # of nothing, unless this chain was interrupted
            progress=progress,
            loaded=(early, late, {"a": source, "b": sources[number]}),
        )
        reports.append(report)
        if number < len(seams):
            early = load_composite(folder, joined(parts[: number + 1]), settings)
            source = Source(early.name, folder, None, "folder")
            site += seams[number].layer - parts[number].start
    return reports


def load_all(
    parts: Sequence[Part], settings: Settings, progress: Progress | None = None
) -> tuple[list[Model], list[Source]]:
    """A model and its source per part, each folder loaded once. Raises UsageError unless all read the same token ids.

    The first part may be cut from a composite, others may not.
    """
    dtype, device = torch_dtype(settings.dtype), torch_device(settings.device)
    sources = [resolve(part.model, progress=progress) for part in parts]
    found: dict[Path, Model] = {}
    for source in sources:
        if (place := source.folder.resolve()) not in found:
            found[place] = load(
                source.folder,
                name=source.name,
                dtype=dtype,
                device=device,
                trust_remote_code=settings.trust_remote_code,
            )
    models = [found[source.folder.resolve()] for source in sources]
    for model in models[1:]:
        check_target(model.config, model.name)
        require_same_ids(models[0].tokenizer, model.tokenizer, models[0].name, model.name)
    return models, sources


def complete_all(parts: Sequence[Part], seams: Sequence[Settings], models: Sequence[Model]) -> list[CompleteSettings]:
    """The seams' settings with their defaults filled in, checked against the models before any work is done.

    Windows are those that every model takes, so that all numbers of the report are of the same text.
    """
    last, end = parts[-1], models[-1].depth
    if last.stop not in (None, end):
        raise UsageError(
            f"the last part runs to the end of its model, block {end} of {last.model}; got to: {last.stop}: leave `to` out."
        )
    if last.start >= end:
        raise UsageError(
            f"part {len(parts)} ({last.model}) must run at least one block, so `from` must be below {end}; got {last.start}."
        )
    completed = [
        complete(settings, early, late) for settings, early, late in zip(seams, models, models[1:], strict=False)
    ]
    context = min(settings.context for settings in completed)
    return [dataclasses.replace(settings, context=context) for settings in completed]


def load_composite(folder: Path, name: str, settings: CompleteSettings) -> Model:
    """The composite so far, as the first model of the next stitch."""
    return load(folder, name=name, dtype=torch_dtype(settings.dtype), device=torch_device(settings.device))


def keep_beside(seam: Path, target: Path) -> None:
    """What is worth keeping of an earlier seam: its whole report, its features and their SAEs."""
    target.mkdir()
    for name in KEPT:
        if (seam / name).is_dir():
            shutil.copytree(seam / name, target / name, copy_function=shutil.copyfile)
        elif (seam / name).exists():
            shutil.copyfile(seam / name, target / name)
