"""What every `stitch transfer` does around what it carries: models loaded, sites read, a folder written."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from stitch.composite.cuts import require_exact
from stitch.config import CompleteSettings, Settings
from stitch.files.folders import to_json
from stitch.files.job import Clock, Job, run
from stitch.files.recipe import recipe
from stitch.files.store import Store
from stitch.files.workspace import short_name
from stitch.jobs.pair.models import load_any_pair
from stitch.jobs.pair.settings import complete
from stitch.jobs.small import tried_small
from stitch.jobs.transfer_across import require_carriable
from stitch.jobs.transfer_sites import Sites, read_sites
from stitch.models.model import Model
from stitch.models.provenance import provenance
from stitch.models.sources import Source
from stitch.pages.page import html
from stitch.pages.transfer import transfer_page
from stitch.progress import Progress
from stitch.report.transfer import notes, table

T = TypeVar("T")
# What of the settings of a pair decides a transfer.
SETTINGS = (
    *(
        "model_a",
        "model_b",
        "layer",
        "layer_b",
        "text",
        "tokens",
        "held_out",
        "context",
        "seed",
        "memory",
        "device",
        "dtype",
    ),
    "trust_remote_code",
)


@dataclass(frozen=True)
class Loaded:
    """What is there before any work: complete settings, both models, their sources by side."""

    settings: CompleteSettings
    a: Model
    b: Model
    sources: dict[str, Source]


def transfer(
    kind: str,
    settings: Settings,
    out: Path | None,
    read: Callable[[Loaded], T],
    make: Callable[[Sites, T, Path], dict],
    request: dict,
    *,
    overwrite: bool = False,
    store: Store | None = None,
    progress: Progress | None = None,
) -> tuple[dict, Path]:
    """Runs one kind of transfer: harvests both sites, calls `make(sites, carried, output)` for files and report, and writes the
    folder.

    `carried` is what `read(loaded)` returns, which raises before anything costs where a file does not fit. `request` are the
    options that only this kind has, for the report. Activations of earlier runs are taken from `store`.
    """
    clock = Clock()

    def plan() -> Job:
        with clock.stage("load"):
            a, b, sources = load_any_pair(settings, progress, tried_small([settings], whole=True))
            require_carriable(a, b)
            completed = complete(settings, a, b)
            require_exact(a, settings.layer)  # the blocks after it run alone as well
            carried = read(Loaded(completed, a, b, sources))

        def work(scratch: Path, output: Path) -> dict:
            sites = read_sites(completed, a, b, scratch, clock, progress, store)
            output.mkdir(parents=True)
            report = {**sites.described(), **make(sites, carried, output)}
            report["seconds"] = clock.seconds
            report["cache"] = store.counts() if store else {}
            options = {name: value for name, value in completed.to_dict().items() if name in SETTINGS}
            report["provenance"] = {**provenance({**options, **request}, a, b, sources), **sites.text}
            report["recipe"] = recipe(f"transfer {kind}", report["provenance"])
            (output / "report.json").write_bytes(to_json(report))
            (output / "report.html").write_bytes(html(transfer_page(report, table(report), notes(report))))
            return report

        return Job(make=work, name=f"{short_name(a.name)}-to-{short_name(b.name)}-{kind}")

    return run(f"transfer {kind}", plan, out, overwrite=overwrite)
