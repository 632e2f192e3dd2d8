"""`stitch.join` and `stitch.chain`: two or more models made into one."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from stitch.api.given import ModelLike, Output, PathLike, TextLike, byte_count, named, store_of, text_named
from stitch.api.page import Page
from stitch.api.progress import progress
from stitch.api.result import ModelResult
from stitch.api.sharing import push as push_folder
from stitch.api.sharing import require_pushable
from stitch.composite.parts import Part, given_parts, read_parts
from stitch.errors import StitchError
from stitch.files.output import check_output


class Composite(ModelResult):
    """A composite: its report, its table, and the model."""


def join(
    model_a: ModelLike,
    model_b: ModelLike,
    layer: int,
    *,
    layer_b: int | Literal["auto"] | None = None,
    native: bool = False,
    text: TextLike = "docs",
    tokens: int | None = None,
    held_out: int | None = None,
    context: int | None = None,
    features: int | None = None,
    k: int = 32,
    architecture: str = "batchtopk",
    sae_a: str | None = None,
    sae_b: str | None = None,
    sae_any_hook: bool = False,
    sae_passes: float = 2.0,
    matching: str = "hungarian",
    translation: str = "auto",
    seam_bytes: float = 10.0,
    ngrams: int = 32_768,
    routes: int | None = None,
    reference_steps: int | None = None,
    brief: bool = False,
    seed: int = 0,
    memory: int | str = "4G",
    cache_size: int | str = "10G",
    device: str = "auto",
    dtype: str = "fp32",
    out: PathLike | None = None,
    push: str | None = None,
    overwrite: bool = False,
    resume: bool = False,
    restart: bool = False,
    trust_remote_code: bool = False,
    quiet: bool = False,
) -> Composite:
    """Joins the first `layer` blocks of `model_a` to `model_b` from block `layer_b` on, and measures the composite.

    The residual stream between them is translated by a map fitted on text without gradient descent. Options are those of
    `stitch join`. A model is a name, a folder, an earlier result, or a pair (PreTrainedModel, tokenizer); `text` is a name, a
    list of strings or a dataset with a column `text`. Lengths are in tokens, `memory` and `cache_size` are sizes such as "4G" (a
    number is in bytes), `seam_bytes` is in percent of the bytes of both halves. `sae_a` and `sae_b`, folders of SAEs or
    release:sae_id, are checked before any work, and refused where they say that they belong to another hook or model, unless
    `sae_any_hook`. Activations and SAEs are kept for later runs, at most `cache_size` of them; the result has the same bytes with
    and without them. With `out` None nothing else is written but a temporary folder that goes with the result; "auto" names a
    folder after models and blocks.

    Raises: UsageError when the request cannot be met; StitchError, SAEError or MatchError when the work fails.
    """
    from stitch.config import Settings
    from stitch.jobs import join as job

    require_pushable(push)
    place = Output(out)
    with named(model_a, model_b) as (a, b), text_named(text) as source, progress(quiet) as update:
        settings = Settings(
            model_a=a, model_b=b, layer=layer, layer_b=layer_b, text=source, tokens=tokens, held_out=held_out,
            context=context, features=features, k=k, architecture=architecture, sae_a=sae_a, sae_b=sae_b,
            sae_any_hook=sae_any_hook, sae_passes=sae_passes, matching=matching, translation=translation,
            seam_bytes=seam_bytes, ngrams=ngrams, routes=routes, reference_steps=reference_steps, seed=seed,
            memory=byte_count(memory), device=device, dtype=dtype, trust_remote_code=trust_remote_code, native=native,
            brief=brief,
        )  # fmt: skip
        report, folder = job.stitch(
            settings, place.folder, overwrite=overwrite, resume=resume, restart=restart, store=store_of(cache_size),
            progress=update,
        )  # fmt: skip
    return _composite(report, folder, place, push, quiet)


def chain(
    parts: Sequence[Part | Mapping[str, Any]] | PathLike,
    *,
    text: TextLike = "docs",
    tokens: int | None = None,
    held_out: int | None = None,
    context: int | None = None,
    features: int | None = None,
    k: int = 32,
    architecture: str = "batchtopk",
    sae_passes: float = 2.0,
    matching: str = "hungarian",
    translation: str = "auto",
    seam_bytes: float = 10.0,
    ngrams: int = 32_768,
    routes: int | None = None,
    reference_steps: int | None = 0,
    brief: bool = False,
    seed: int = 0,
    memory: int | str = "4G",
    cache_size: int | str = "10G",
    device: str = "auto",
    dtype: str = "fp32",
    out: PathLike | None = None,
    push: str | None = None,
    overwrite: bool = False,
    resume: bool = False,
    restart: bool = False,
    trust_remote_code: bool = False,
    quiet: bool = False,
) -> Composite:
    """Joins parts of any number of models, with a translation at each seam, fitted on the stream of the composite so far.

    `parts` are `Part`s, mappings {model, from, to}, or a YAML file with a list `parts` of such mappings. Options are
    those of `join` without `layer_b`, `native` and given SAEs, and apply to every seam; `reference_steps` is 0 by default.
    Raises: UsageError when the request cannot be met; StitchError, SAEError or MatchError when the work fails.
    """
    from stitch.jobs import chain as job

    require_pushable(push)
    place = Output(out)
    if place.folder is not None and not resume:
        check_output(place.folder, overwrite)  # before a file is read
    listed = read_parts(Path(parts)) if isinstance(parts, (str, Path)) else given_parts(parts)
    models = [part.model for part in listed]
    with named(*models) as names, text_named(text) as source, progress(quiet) as update:
        named_parts = [replace(part, model=name) for part, name in zip(listed, names, strict=True)]
        report, folder = job.chain(
            named_parts, place.folder, text=source, tokens=tokens,
            held_out=held_out, context=context, features=features, k=k, architecture=architecture, sae_passes=sae_passes,
            matching=matching, translation=translation, seam_bytes=seam_bytes, ngrams=ngrams, routes=routes,
            reference_steps=reference_steps, brief=brief, seed=seed, memory=byte_count(memory), device=device, dtype=dtype,
            trust_remote_code=trust_remote_code, overwrite=overwrite, resume=resume, restart=restart,
            store=store_of(cache_size), progress=update,
        )  # fmt: skip
    return _composite(report, folder, place, push, quiet)


def _pushed(folder: Path, repo: str, place: Output, quiet: bool) -> str:
    try:
        return push_folder(folder, repo, quiet=quiet)
    except StitchError as error:
        if place.folder is None:
            raise
        raise type(error)(f"{error} The model is finished, in {folder}: `stitch push` uploads it alone.") from None


def _composite(report: dict, folder: Path, place: Output, repo: str | None, quiet: bool) -> Composite:
    from stitch.report.cached import reused
    from stitch.report.card import footnotes, table
    from stitch.report.verdict import verdict_sentence

    url = _pushed(folder, repo, place, quiet) if repo else None
    page = Page(
        lead=verdict_sentence(report) if "verdict" in report else None,
        tables=[table(report)],
        notes=[*footnotes(report), *reused(report)],
        written=place.written(folder, url),
    )
    return Composite(report, page, place, folder)
