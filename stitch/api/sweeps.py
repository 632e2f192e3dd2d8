"""`stitch.sweep`: where two models are best joined, or which blocks of one can go or run twice."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stitch.api.given import ModelLike, Output, PathLike, TextLike, byte_count, named, store_of, text_named
from stitch.api.page import Page
from stitch.api.progress import progress
from stitch.api.result import FolderResult
from stitch.errors import UsageError

if TYPE_CHECKING:
    import pandas


class Sweep(FolderResult):
    """Every composite or range of blocks that was tried."""

    @property
    def rows(self) -> "pandas.DataFrame":
        """A row per pair of layers, or per range of blocks."""
        import pandas

        return pandas.DataFrame(self.report["cells"])


def sweep(
    model_a: ModelLike,
    model_b: ModelLike | None = None,
    *,
    depth: bool = False,
    repeat: bool = False,
    lengths: Sequence[int] | None = None,
    text: TextLike = "docs",
    tokens: int | None = None,
    context: int | None = None,
    memory: int | str = "4G",
    cache_size: int | str = "10G",
    device: str = "auto",
    dtype: str = "fp32",
    cluster: str | None = None,
    out: PathLike | None = None,
    overwrite: bool = False,
    resume: bool = False,
    restart: bool = False,
    trust_remote_code: bool = False,
    quiet: bool = False,
) -> Sweep:
    """Tries every pair of layers of two models, in both directions, or with `depth` every range of blocks of one.

    Options are those of `stitch sweep`; models, `text` and `out` as in `join`. `lengths` are numbers of blocks to remove, or
    with `repeat` also to run twice. A `cluster` sees models and texts by name alone. Activations are kept for later runs, at most
    `cache_size` bytes of them, but not those of a `cluster`; the files have the same bytes with and without them.
    Raises: UsageError when the request cannot be met; StitchError when the work fails.
    """
    _check(model_b is None, depth, repeat, lengths, cluster)
    place = Output(out)
    with named(model_a, model_b) as (a, b), text_named(text) as source, progress(quiet) as update:
        common = {
            "text": source, "context": context, "memory": byte_count(memory), "device": device, "dtype": dtype,
            "trust_remote_code": trust_remote_code, "overwrite": overwrite, "resume": resume, "restart": restart,
            "store": store_of(cache_size), "progress": update, **({} if tokens is None else {"tokens": tokens}),
        }  # fmt: skip
        if b is None:
            from stitch.jobs.depth import sweep_depth

            chosen = None if lengths is None else list(lengths)
            report, folder = sweep_depth(a, place.folder, repeat=repeat, lengths=chosen, **common)
            shown = _ranges(report)
        else:
            from stitch.jobs import sweep as job

            report, folder = job.sweep(a, b, place.folder, cluster=cluster, **common)
            shown = _pairs(report)
    return Sweep(report, Page(**shown, written=place.written(folder)), place, folder)


def _check(one: bool, depth: bool, repeat: bool, lengths: Sequence[int] | None, cluster: str | None) -> None:
    if depth != one:
        raise UsageError("a sweep needs two models, or one model and `depth`.")
    if one and cluster:
        raise UsageError("`cluster` spreads pairs of layers; a sweep with `depth` runs on one machine: leave it out.")
    if not one and (repeat or lengths):
        raise UsageError("`repeat` and `lengths` belong to `depth`: leave them out, or give one model and `depth`.")


def _pairs(report: dict) -> dict:
    from stitch.report.cached import reused
    from stitch.report.no_picture import no_picture
    from stitch.report.sweep import best_table, footnotes, front_table, heat, swept_directions

    return {
        "heats": [heat(report, source) for source, _ in swept_directions(report)],
        "tables": [best_table(report), front_table(report, "flops"), front_table(report, "bytes")],
        "notes": [*footnotes(report), *reused(report), *no_picture()],
    }


def _ranges(report: dict) -> dict:
    from stitch.report.cached import reused
    from stitch.report.depth import best_table, footnotes, heat, kinds, rows
    from stitch.report.no_picture import no_picture

    return {
        "heats": [heat(report, kind, row) for kind in kinds(report) for row in rows(report)],
        "tables": [best_table(report)],
        "notes": [*footnotes(report), *reused(report), *no_picture()],
    }
