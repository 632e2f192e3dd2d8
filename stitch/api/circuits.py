"""`stitch.circuit` and `stitch.graft`: where a behaviour lives in a model, and how another model gets it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stitch.api.given import NAMED, ModelLike, Output, PathLike, TextLike, folder_name, named, refuse_unread, text_named
from stitch.api.page import Page
from stitch.api.progress import progress
from stitch.api.result import ModelResult, Result

if TYPE_CHECKING:
    import pandas


def circuit(
    model: ModelLike,
    behaviour: PathLike,
    *,
    circuit: PathLike | None = None,
    features: Mapping[int, str] | None = None,
    keep: float = 0.9,
    count: int = 128,
    text: TextLike = "docs",
    seed: int = 0,
    device: str = "auto",
    dtype: str = "fp32",
    out: PathLike | None = None,
    trust_remote_code: bool = False,
    quiet: bool = False,
) -> Result:
    """Finds the fewest heads and neurons that keep a `behaviour`, or scores the `circuit` of a file.

    Options are those of `stitch circuit`; `features` are SAEs by block. With `out` the report is also written to a JSON file, and
    beside it a page to look at (.html) and the circuit on one prompt as an attribution graph (.graph.json).
    Raises: UsageError for a family that is not supported; StitchError when the model does not have the behaviour.
    """
    from stitch.circuits.find import find_circuit
    from stitch.circuits.graph_json import graph_place
    from stitch.circuits.report import footnotes, tables, to_json
    from stitch.pages.circuit import write_circuit_page

    with named(model) as (name,), text_named(text) as source, progress(quiet) as update:
        report = find_circuit(
            name, str(behaviour), circuit=None if circuit is None else Path(circuit), features=features, keep=keep,
            count=count, seed=seed, text=source, device=device, dtype=dtype, trust_remote_code=trust_remote_code,
            graph=None if out is None else graph_place(Path(out)), progress=update,
        )  # fmt: skip
    if out is not None:
        Path(out).write_text(to_json(report))
        write_circuit_page(report, Path(out))
    return Result(report, Page(tables=tables(report), notes=footnotes(report)))


class Graft(ModelResult):
    """A grafted model, or with `dry_run` its plan alone."""

    @property
    def rows(self) -> "pandas.DataFrame":
        """The scores of every graft's rows, indexed by the graft's number and the row's name."""
        import pandas

        rows = [
            {"graft": number, **row}
            for number, one in enumerate(self.report["grafts"])
            for row in one.get("results", [])
        ]
        return pandas.DataFrame(rows).set_index(["graft", "name"]) if rows else pandas.DataFrame()


def graft(
    donor: ModelLike,
    behaviour: PathLike,
    host: ModelLike,
    *,
    circuit: PathLike | None = None,
    requests: Sequence[tuple[ModelLike, PathLike]] = (),
    features: Mapping[int, str] | None = None,
    keep: float = 0.98,
    count: int = 128,
    channels: int | None = None,
    strength: float = 1.0,
    text: TextLike = "docs",
    seed: int = 0,
    device: str = "auto",
    out: PathLike | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    quiet: bool = False,
) -> Graft:
    """Writes the circuit of a donor's behaviour into `host`, without training, and compares it with controls.

    `host` is a trained model or a JSON file with the config of a new one. `requests` are further pairs (donor, behaviour) for
    the same host. With `dry_run` only the plan is made. Other options are those of `stitch graft`; models, `text` and `out` as
    in `join`.
    Raises: UsageError when a circuit does not fit into the host; StitchError when a donor does not have its behaviour.
    """
    from stitch.grafts.graft import graft as job
    from stitch.grafts.report import plan_notes, plan_tables, result_notes, result_tables
    from stitch.grafts.request import GraftRequest

    if str(host).endswith(".json"):
        refuse_unread(graft, "with a trained host", strength=strength)
    donors = [donor, *(other for other, _ in requests)]
    with named(host, *donors) as (target, *names), text_named(text) as source, progress(quiet) as update:
        place = Output(folder_name(names[0], str(behaviour)) if out == NAMED else out)
        path = None if circuit is None else Path(circuit)
        first = GraftRequest(names[0], str(behaviour), path, dict(features or {}))
        others = [GraftRequest(name, str(one)) for name, (_, one) in zip(names[1:], requests, strict=True)]
        report = job(
            [first, *others], target, None if dry_run else place.path, keep=keep, channels=channels, strength=strength,
            count=count, seed=seed, text=source, device=device, overwrite=overwrite, trust_remote_code=trust_remote_code,
            progress=update,
        )  # fmt: skip
    if dry_run:
        page = Page(tables=[*plan_tables(report)], notes=plan_notes(report))
    else:
        page = Page(tables=[*result_tables(report)], notes=result_notes(report), written=place.written(place.path))
    return Graft(report, page, place, place.path)
