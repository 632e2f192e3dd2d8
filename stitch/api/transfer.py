"""`stitch.transfer`: a sparse autoencoder, a linear probe or steering vectors of one model rewritten for another.

The models may read different tokens: the report then says what the maps were fitted on, under `across`.
"""

from pathlib import Path
from typing import Any

from stitch.api.given import ModelLike, Output, PathLike, TextLike, byte_count, named, store_of, text_named
from stitch.api.page import Page
from stitch.api.progress import progress
from stitch.api.result import FolderResult


class Transferred(FolderResult):
    """What was carried over, its report and its table."""


def sae(
    model_a: ModelLike,
    model_b: ModelLike,
    file: PathLike,
    layer: int,
    *,
    layer_b: int | None = None,
    native: PathLike | None = None,
    sae_any_hook: bool = False,
    text: TextLike = "docs",
    tokens: int = 100_000,
    held_out: int | None = None,
    context: int | None = None,
    sae_passes: float = 20.0,
    seed: int = 0,
    memory: int | str = "4G",
    cache_size: int | str = "10G",
    device: str = "auto",
    dtype: str = "fp32",
    out: PathLike | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    quiet: bool = False,
) -> Transferred:
    """Rewrites the SAE `file` (a folder, or release:sae_id) of `model_a` at `layer` for `model_b` at `layer_b`.

    `result.folder / "sae"` is in SAELens's format. `native` is an SAE of `model_b` to compare with. Both are
    refused where they say that they belong to another hook or model, unless `sae_any_hook`. Other options are those of
    `stitch transfer sae`; models, `text` and `out` as in `stitch.join`.
    Raises: UsageError when the request cannot be met; SAEError when the SAE cannot be read.
    """
    from stitch.jobs.transfer_sae import transfer_sae

    common = {
        "layer": layer, "layer_b": layer_b, "tokens": tokens, "held_out": held_out, "context": context,
        "sae_any_hook": sae_any_hook, "sae_passes": sae_passes, "seed": seed, "memory": memory, "device": device, "dtype": dtype,
        "trust_remote_code": trust_remote_code,
    }  # fmt: skip
    place = Output(out)
    with named(model_a, model_b) as (a, b), text_named(text) as source, progress(quiet) as update:
        settings = _settings(a, b, source, common)
        report, folder = transfer_sae(
            settings, str(file), place.folder, native=None if native is None else str(native), overwrite=overwrite,
            store=store_of(cache_size), progress=update,
        )  # fmt: skip
    return _result(report, folder, place)


def probe(
    model_a: ModelLike,
    model_b: ModelLike,
    file: PathLike,
    layer: int,
    *,
    layer_b: int | None = None,
    labels: PathLike | None = None,
    text: TextLike = "docs",
    tokens: int = 100_000,
    held_out: int | None = None,
    context: int | None = None,
    seed: int = 0,
    memory: int | str = "4G",
    cache_size: int | str = "10G",
    device: str = "auto",
    dtype: str = "fp32",
    out: PathLike | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    quiet: bool = False,
) -> Transferred:
    """Rewrites a linear probe of `model_a` at `layer` for `model_b` at `layer_b`.

    `file` is a safetensors file with `weight` [classes, width] and `bias` [classes]. `labels` is a .jsonl file of {"text": …,
    "labels": [[start, end, class], …]}. Other options are those of `stitch transfer probe`; models, `text` and `out` as in
    `stitch.join`.
    Raises: UsageError when the request cannot be met.
    """
    from stitch.jobs.transfer_probe import transfer_probe

    common = {
        "layer": layer, "layer_b": layer_b, "tokens": tokens, "held_out": held_out, "context": context, "seed": seed,
        "memory": memory, "device": device, "dtype": dtype, "trust_remote_code": trust_remote_code,
    }  # fmt: skip
    place, labelled = Output(out), None if labels is None else Path(labels)
    with named(model_a, model_b) as (a, b), text_named(text) as source, progress(quiet) as update:
        settings = _settings(a, b, source, common)
        report, folder = transfer_probe(
            settings,
            Path(file),
            place.folder,
            labels=labelled,
            overwrite=overwrite,
            store=store_of(cache_size),
            progress=update,
        )
    return _result(report, folder, place)


def vector(
    model_a: ModelLike,
    model_b: ModelLike,
    file: PathLike,
    layer: int,
    *,
    layer_b: int | None = None,
    strength: float = 1.0,
    text: TextLike = "docs",
    tokens: int = 100_000,
    held_out: int | None = None,
    context: int | None = None,
    seed: int = 0,
    memory: int | str = "4G",
    cache_size: int | str = "10G",
    device: str = "auto",
    dtype: str = "fp32",
    out: PathLike | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    quiet: bool = False,
) -> Transferred:
    """Rewrites steering vectors of `model_a` at `layer` for `model_b` at `layer_b`.

    `file` is a safetensors file of tensors [width] or [n, width]. Other options are those of `stitch transfer vector`; models,
    `text` and `out` as in `stitch.join`.
    Raises: UsageError when the request cannot be met.
    """
    from stitch.jobs.transfer_vector import transfer_vector

    common = {
        "layer": layer, "layer_b": layer_b, "tokens": tokens, "held_out": held_out, "context": context, "seed": seed,
        "memory": memory, "device": device, "dtype": dtype, "trust_remote_code": trust_remote_code,
    }  # fmt: skip
    place = Output(out)
    with named(model_a, model_b) as (a, b), text_named(text) as source, progress(quiet) as update:
        settings = _settings(a, b, source, common)
        report, folder = transfer_vector(
            settings,
            Path(file),
            place.folder,
            strength=strength,
            overwrite=overwrite,
            store=store_of(cache_size),
            progress=update,
        )
    return _result(report, folder, place)


def _settings(a: str, b: str, text: str, options: dict[str, Any]):
    """The settings of a pair of sites; what only a composite needs keeps its default."""
    from stitch.config import Settings

    return Settings(model_a=a, model_b=b, text=text, brief=True, **{**options, "memory": byte_count(options["memory"])})


def _result(report: dict, folder: Path, place: Output) -> Transferred:
    from stitch.report.cached import reused
    from stitch.report.transfer import notes, table

    page = Page(tables=[table(report)], notes=[*notes(report), *reused(report)], written=place.written(folder))
    return Transferred(report, page, place, folder)
