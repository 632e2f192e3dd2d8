"""`stitch.transfer`: a sparse autoencoder, a linear probe or steering vectors of one model rewritten for another.

The models may read different tokens: the report then says what the maps were fitted on, under `across`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from stitch.api.given import ModelLike, Output, PathLike, TextLike, byte_count, named, store_of, text_named
from stitch.api.held import filed, write_labels, write_sae, write_tensors
from stitch.api.page import Page
from stitch.api.progress import progress
from stitch.api.result import FolderResult

if TYPE_CHECKING:
    from torch import Tensor

    SAELike: TypeAlias = PathLike | Any  # an SAE of SAELens, whose types are known in `sae` alone
    ProbeLike: TypeAlias = PathLike | Mapping[str, Tensor]
    VectorsLike: TypeAlias = ProbeLike | Tensor
    LabelsLike: TypeAlias = PathLike | Sequence[Mapping[str, Any]]
else:
    SAELike = ProbeLike = VectorsLike = LabelsLike = Any


class Transferred(FolderResult):
    """What was carried over, its report and its table."""


def sae(
    model_a: ModelLike,
    model_b: ModelLike,
    file: SAELike,
    layer: int,
    *,
    layer_b: int | None = None,
    native: SAELike | None = None,
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
    """Rewrites the SAE `file` (a folder, release:sae_id, or SAELens's SAE) of `model_a` at `layer` for `model_b` at `layer_b`.

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
    with (
        named(model_a, model_b) as (a, b),
        text_named(text) as source,
        filed(file, "SAE", write_sae) as given,
        filed(native, "SAE", write_sae) as of_b,
        progress(quiet) as update,
    ):
        settings = _settings(a, b, source, common)
        report, folder = transfer_sae(
            settings, given, place.folder, native=of_b, overwrite=overwrite, store=store_of(cache_size), progress=update
        )
    return _result(report, folder, place)


def probe(
    model_a: ModelLike,
    model_b: ModelLike,
    file: ProbeLike,
    layer: int,
    *,
    layer_b: int | None = None,
    labels: LabelsLike | None = None,
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

    `file` is a safetensors file with `weight` [classes, width] and `bias` [classes], or a mapping of these tensors. `labels` is
    a .jsonl file, or a list, of {"text": …, "labels": [[start, end, class], …]}. Other options are those of
    `stitch transfer probe`; models, `text` and `out` as in `stitch.join`.
    Raises: UsageError when the request cannot be met.
    """
    from stitch.jobs.transfer_probe import transfer_probe

    common = {
        "layer": layer, "layer_b": layer_b, "tokens": tokens, "held_out": held_out, "context": context, "seed": seed,
        "memory": memory, "device": device, "dtype": dtype, "trust_remote_code": trust_remote_code,
    }  # fmt: skip
    place = Output(out)
    with (
        named(model_a, model_b) as (a, b),
        text_named(text) as source,
        filed(file, "probe", write_tensors) as given,
        filed(labels, "labels", write_labels) as labelled,
        progress(quiet) as update,
    ):
        settings = _settings(a, b, source, common)
        report, folder = transfer_probe(
            settings,
            Path(given),
            place.folder,
            labels=None if labelled is None else Path(labelled),
            overwrite=overwrite,
            store=store_of(cache_size),
            progress=update,
        )
    return _result(report, folder, place)


def vector(
    model_a: ModelLike,
    model_b: ModelLike,
    file: VectorsLike,
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

    `file` is a safetensors file of tensors [width] or [n, width], a mapping of such tensors, or one of them, which is named
    `vector`. Other options are those of `stitch transfer vector`; models, `text` and `out` as in `stitch.join`.
    Raises: UsageError when the request cannot be met.
    """
    from stitch.jobs.transfer_vector import transfer_vector

    common = {
        "layer": layer, "layer_b": layer_b, "tokens": tokens, "held_out": held_out, "context": context, "seed": seed,
        "memory": memory, "device": device, "dtype": dtype, "trust_remote_code": trust_remote_code,
    }  # fmt: skip
    place = Output(out)
    with (
        named(model_a, model_b) as (a, b),
        text_named(text) as source,
        filed(file, "vectors", write_tensors) as given,
        progress(quiet) as update,
    ):
        settings = _settings(a, b, source, common)
        report, folder = transfer_vector(
            settings,
            Path(given),
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
