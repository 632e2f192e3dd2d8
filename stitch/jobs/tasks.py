"""Scores models on tasks of lm-eval: a model, one to compare it with, and those that it was made from, side by side."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sae.messages import one_line, printable
from stitch.errors import StitchError, UsageError, require_extra
from stitch.evaluation.lm_eval_tasks import index, read_data, score
from stitch.models.device import torch_device, torch_dtype
from stitch.models.identity import weights_hash
from stitch.models.loading import load_any
from stitch.models.made_from import Recorded, made_from
from stitch.models.provenance import described, versions
from stitch.models.sources import Source, resolve, resolve_all
from stitch.progress import Progress

MODEL, AGAINST = "model", "against"


def evaluate_tasks(
    model: str,
    tasks: Sequence[str],
    against: str | None = None,
    *,
    folder: Path | None = None,
    alone: bool = False,
    memory: int = 4 * 2**30,
    device: str = "auto",
    dtype: str = "fp32",
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> dict:
    """Scores `model`, `against` if given, and unless `alone` the models that `model` was made from, on `tasks` of lm-eval.

    `folder` has task files of your own. They can run code, so it is read with `trust_remote_code` alone. The other models are
    those that report.json beside `model` names; of these no remote code is run, and one that cannot be had or fails is a note.
    Returns the report, with a row per task and metric. Models are loaded one after another. The `model` that was retokenised is
    called `model before`.
    Raises: UsageError for an unknown task, a folder that may not be read, and without lm-eval; StitchError where it fails.
    """
    require_extra("eval", "`tasks`")
    place, precision = torch_device(device), torch_dtype(dtype)
    manager = index(_readable(folder, trust_remote_code), progress)
    wanted = _known(tasks, manager)
    read_data(wanted, manager, progress)
    named = {MODEL: model} if against is None else {MODEL: model, AGAINST: against}
    sources = dict(zip(named, resolve_all([*named.values()], trust_remote_code=trust_remote_code), strict=True))

    def scored(source: Source, trusted: bool) -> dict:
        found = load_any(source, precision, place, trusted)
        return score(found, source.name, wanted, manager, memory=memory, progress=progress)

    scores = {role: scored(source, trust_remote_code) for role, source in sources.items()}
    notes = []
    donors = [] if alone else made_from(sources[MODEL].folder)
    if donors and progress is not None:  # before any of them is downloaded
        listed = ", ".join(f"{one.role} {one.name}" for one in donors)
        progress(f"models that report.json names: {listed}", len(donors), len(donors))
    for one in donors:
        role = f"{one.role} before" if one.role in named else one.role
        try:
            source = _recorded(one, progress)
            if any(source.folder.samefile(other.folder) for other in sources.values()):
                continue
            scores[role], sources[role] = scored(source, False), source
        except Exception as error:  # too little memory, for one; what is scored already is worth more
            reason = str(error) if isinstance(error, StitchError) else one_line(error)
            notes.append(f"{role}, {one.name}, is not shown: {reason.removesuffix('.')}.")
            continue
        if one.kind == "folder" and one.weights is None:
            notes.append(f"{role}, {one.name}, is what is there now: the report has no hash of what was there.")
    order = [*(role for role in sources if role not in named), *reversed(named)]
    return {
        "models": {role: sources[role].name for role in order},
        "tasks": wanted,
        "results": _rows({role: scores[role] for role in order}),
        "notes": notes,
        "provenance": {
            "models": {role: described(sources[role]) for role in order},
            "task_folder": folder and str(folder),
            "task_versions": scores[MODEL]["versions"],
            "versions": {**versions(), **scores[MODEL]["library"]},
        },
    }


def _readable(folder: Path | None, trusted: bool) -> Path | None:
    if folder is not None and not folder.is_dir():
        raise UsageError(f"`task_folder` must be a folder of task files; there is none at {folder}.")
    if folder is not None and not trusted:
        raise UsageError(
            f"task files can run code on your machine: read those in {folder}, and set `trust_remote_code` to allow it."
        )
    return folder


def _known(tasks: Sequence[str], manager: Any) -> list[str]:
    """Names of tasks and groups; patterns such as `arc_*` are resolved. Raises: UsageError for the first that is unknown."""
    found: list[str] = []
    for task in tasks:
        matching = manager.match_tasks([task])
        if not matching:
            near = difflib.get_close_matches(task, manager.all_tasks, 1)
            hint = f"Did you mean {near[0]}?" if near else "`lm_eval ls tasks` lists them."
            raise UsageError(f"`tasks` must be names of lm-eval's tasks; got {printable(task)!r}. {hint}")
        found += matching
    if not found:
        raise UsageError("`tasks` must name at least one task of lm-eval.")
    return list(dict.fromkeys(found))


def _recorded(one: Recorded, progress: Progress | None) -> Source:
    """The model that a report names. Raises: StitchError where it is not there, or not what it was."""
    if one.kind == "memory":
        raise StitchError("it was a model in memory")
    if one.kind == "folder":
        folder = Path(one.name).expanduser()
        if not folder.is_dir():  # its name may be one on the Hub
            raise StitchError("its folder is not there")
        if one.weights is None and not folder.is_absolute():  # any folder of this name would do
            raise StitchError("the report has neither the place of its folder nor a hash")
    source = resolve(one.address, progress=progress)
    found = weights_hash(source.folder, progress) if one.weights else None
    if (one.kind, one.revision, one.weights) != (source.kind, source.revision, found):
        raise StitchError("it has changed since")
    return source


def _rows(scores: dict[str, dict]) -> list[dict]:
    """A row per task and metric, with a score and its standard error per model; None where lm-eval gives none."""
    first = next(iter(scores.values()))["metrics"]
    rows = []
    for (task, metric), about in first.items():
        row = {"name": f"{task} {metric}", "task": task, "metric": metric, **about["about"]}
        for role, one in scores.items():
            row |= {
                role: one["metrics"][task, metric]["value"],
                f"{role}_stderr": one["metrics"][task, metric]["stderr"],
            }
        rows.append(row)
    return rows
