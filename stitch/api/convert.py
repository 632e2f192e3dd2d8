"""`stitch.convert`: a trained model in another form, with a table of what that costs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from stitch.api.given import ModelLike, Output, PathLike, TextLike, byte_count, named, refuse_unread, text_named
from stitch.api.page import Page
from stitch.api.progress import progress
from stitch.api.result import ModelResult


class Converted(ModelResult):
    """A converted model, its report and its table."""


def heads(
    model: ModelLike,
    kv_heads: int,
    *,
    steps: int = 0,
    text: TextLike = "docs",
    tokens: int = 32_768,
    held_out: int = 16_384,
    context: int | None = None,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "fp32",
    out: PathLike | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    quiet: bool = False,
) -> Converted:
    """Merges key and value heads to `kv_heads` per block, for a smaller KV cache. The result is a stock checkpoint.

    Options are those of `stitch convert heads`; models, `text` and `out` as in `stitch.join`.
    Raises: UsageError for a request that cannot be met, StitchError for weights or text that fail.
    """
    from stitch.conversions.heads.convert import convert_heads

    place = Output(out)
    with named(model) as (name,), text_named(text) as source, progress(quiet) as update:
        report = convert_heads(
            name, place.path, kv_heads=kv_heads, text=source, tokens=tokens, held_out=held_out, context=context, steps=steps,
            seed=seed, device=device, dtype=dtype, overwrite=overwrite, trust_remote_code=trust_remote_code, progress=update,
        )  # fmt: skip
    return _converted(report, place)


def ngram(
    model: ModelLike,
    drop: int | Literal["auto"],
    *,
    tolerance: float = 0.05,
    order: int = 3,
    rows: int = 65_536,
    skips: int = 4,
    table_bytes: float = 100.0,
    text: TextLike = "docs",
    tokens: int = 300_000,
    held_out: int = 32_768,
    context: int | None = None,
    seed: int = 0,
    memory: int | str = "4G",
    device: str = "auto",
    dtype: str = "fp32",
    out: PathLike | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    quiet: bool = False,
) -> Converted:
    """Replaces the first `drop` blocks by n-gram look-up tables; "auto": as many as cost at most `tolerance` nats per token.

    Tables are packed into `table_bytes` percent of the bytes of the blocks.
    Options are those of `stitch convert ngram`; models, `text` and `out` as in `stitch.join`.
    Raises: UsageError for a request that cannot be met, StitchError for weights or text that fail.
    """
    from stitch.conversions.ngrams.convert import convert_ngram
    from stitch.conversions.ngrams.memory import NgramShape

    if drop != "auto":
        refuse_unread(ngram, "where `drop` is auto", tolerance=tolerance)
    place = Output(out)
    with named(model) as (name,), text_named(text) as source, progress(quiet) as update:
        report = convert_ngram(
            name, place.path, drop=drop, shape=NgramShape(order=order, rows=rows, skips=skips),
            table_bytes=table_bytes, tolerance=tolerance, text=source, tokens=tokens, held_out=held_out, context=context,
            seed=seed, memory=byte_count(memory), device=device, dtype=dtype, trust_remote_code=trust_remote_code,
            overwrite=overwrite, progress=update,
        )  # fmt: skip
    return _converted(report, place)


def recurrent(
    model: ModelLike,
    *,
    features: str = "hybrid",
    window: int | None = None,
    sinks: int = 1,
    slots: int | None = None,
    allocation: str = "measured",
    multiple: float | None = None,
    hidden: int | None = None,
    layers: str = "all",
    steps: int = 400,
    logit_steps: int = 200,
    text: TextLike = "docs",
    tokens: int = 65_536,
    held_out: int = 32_768,
    context: int | None = None,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "fp32",
    out: PathLike | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    quiet: bool = False,
) -> Converted:
    """Replaces the KV cache by a state of constant size: some exact keys and fast weights in each head.

    Options are those of `stitch convert recurrent`; models, `text` and `out` as in `stitch.join`.
    Raises: UsageError for a request that cannot be met, StitchError for weights or text that fail.
    """
    from stitch.conversions.recurrence.convert import convert_recurrent

    place = Output(out)
    with named(model) as (name,), text_named(text) as source, progress(quiet) as update:
        report = convert_recurrent(
            name, place.path, features=features, window=window, sinks=sinks, slots=slots, allocation=allocation,
            multiple=multiple, hidden=hidden, layers=layers, text=source, tokens=tokens, held_out=held_out, context=context,
            steps=steps, logit_steps=logit_steps, seed=seed, device=device, dtype=dtype, overwrite=overwrite,
            trust_remote_code=trust_remote_code, progress=update,
        )  # fmt: skip
    return _converted(report, place)


def consolidate(
    model: ModelLike,
    document: PathLike | Sequence[PathLike],
    *,
    queries: PathLike | Sequence[PathLike] | None = None,
    cost: float = 0.02,
    text: TextLike = "docs",
    tokens: int = 40_000,
    held_out: int = 65_536,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "fp32",
    out: PathLike | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    quiet: bool = False,
) -> Converted:
    """Writes the text file `document`, or several together, into the MLP weights, at a `cost` of so many nats per token on
    other text. `queries`: a file for each document.

    Options are those of `stitch convert consolidate`; models, `text` and `out` as in `stitch.join`.
    Raises: UsageError for a request that cannot be met, StitchError for weights, text or a solve that fail.
    """
    from stitch.conversions.consolidation.convert import consolidate as job

    place = Output(out)
    with named(model) as (name,), text_named(text) as source, progress(quiet) as update:
        report = job(
            name, _files(document), place.path, queries=_files(queries), cost=cost, text=source, tokens=tokens,
            held_out=held_out, seed=seed, device=device, dtype=dtype, trust_remote_code=trust_remote_code, overwrite=overwrite,
            progress=update,
        )  # fmt: skip
    return _converted(report, place)


def _files(given: PathLike | Sequence[PathLike] | None) -> list[Path]:
    if given is None:
        return []
    return [Path(given)] if isinstance(given, str | Path) else [Path(one) for one in given]


def undo(model: ModelLike, *, out: PathLike | None = None, overwrite: bool = False, quiet: bool = False) -> Converted:
    """Takes what `consolidate` wrote last, a document or several together, out of a model again: its donor, bit for bit.

    Options are those of `stitch convert undo`; models and `out` as in `stitch.join`.
    Raises: UsageError for a model that was not consolidated or has changed since, StitchError where its `undo/` is damaged.
    """
    from stitch.conversions.consolidation.undo import table
    from stitch.conversions.consolidation.undo import undo as job

    place = Output(out)
    with named(model) as (name,), progress(quiet) as update:
        report = job(name, place.path, overwrite=overwrite, progress=update)
    page = Page(tables=[table(report)], notes=[report["made"]], written=place.written(place.path))
    return Converted(report, page, place, place.path)


def _converted(report: dict, place: Output) -> Converted:
    from stitch.conversions.report import footnotes, table

    page = Page(tables=[table(report)], notes=footnotes(report), written=place.written(place.path))
    return Converted(report, page, place, place.path)
