"""What every `stitch transfer` starts from: two sites on the same text, and the maps between them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from jaxtyping import Float
from torch import Tensor

from stitch.activations.paired import Paired
from stitch.composite.cuts import require_exact
from stitch.config import CompleteSettings, Settings
from stitch.evaluation.stage import Stage
from stitch.files.folders import to_json
from stitch.files.job import Clock, Job, run
from stitch.files.recipe import recipe
from stitch.files.store import Store
from stitch.files.workspace import short_name
from stitch.jobs.small import tried_small
from stitch.jobs.stages import complete, harvest_pair, load_pair, read_windows
from stitch.models.model import Model
from stitch.models.provenance import provenance
from stitch.models.sources import Source
from stitch.pages.page import html
from stitch.pages.transfer import transfer_page
from stitch.progress import Progress
from stitch.report.transfer import notes, table
from stitch.text.documents import SPLITS, Split
from stitch.transfers.maps import Maps, all_maps, pair_moments, unexplained
from stitch.transfers.maps import Split as SplitMoments

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


@dataclass(frozen=True)
class Sites:
    """Two models, the site of each, and their streams on the same tokens of every split."""

    settings: CompleteSettings
    a: Model
    b: Model
    paired: dict[Split, Paired]
    scratch: Path
    clock: Clock
    progress: Progress | None

    @cached_property
    def moments(self) -> SplitMoments:
        return pair_moments(self.paired["fit"], self.paired["sweep"])

    @cached_property
    def maps(self) -> dict[str, Maps]:
        with self.clock.stage("maps"):
            return all_maps(self.moments, self.settings.seed)

    @cached_property
    def stage(self) -> Stage:
        """Both models on the report split."""
        return Stage(self.a, self.b, *self.settings.sites, self.paired["report"], self.settings.memory)

    def streams_a(self, split: Split) -> Iterator[Float[Tensor, "_ d_a"]]:
        return (x.float() for x, _, _ in self.paired[split].chunks())

    def streams_b(self, split: Split) -> Iterator[Float[Tensor, "_ d_b"]]:
        return (y.float() for _, y, _ in self.paired[split].chunks())

    def described(self) -> dict:
        """The part of the report that does not depend on what is carried."""
        return {
            "models": {"a": self.a.name, "b": self.b.name},
            "site": {"a": self.settings.layer, "b": self.settings.layer_b},
            "tokens": {split: one.a.windows.tokens for split, one in self.paired.items()},
            "unexplained": {name: unexplained(maps, self.moments) for name, maps in self.maps.items()},
        }


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
            a, b, sources = load_pair(settings, progress, tried_small([settings], whole=True))
            completed = complete(settings, a, b)
            require_exact(a, settings.layer)  # the blocks after it run alone as well
            carried = read(Loaded(completed, a, b, sources))

        def work(scratch: Path, output: Path) -> dict:
            with clock.stage("text"):
                windows = read_windows(completed, a, b, progress, store=store)
            with clock.stage("activations"):
                paired: dict[Split, Paired] = {
                    split: harvest_pair(completed, a, b, windows[split], scratch / split, progress, store)
                    for split in SPLITS
                }
            sites = Sites(completed, a, b, paired, scratch, clock, progress)
            output.mkdir(parents=True)
            report = {**sites.described(), **make(sites, carried, output)}
            report["seconds"] = clock.seconds
            report["cache"] = store.counts() if store else {}
            options = {name: value for name, value in completed.to_dict().items() if name in SETTINGS}
            report["provenance"] = {**provenance({**options, **request}, a, b, sources), **windows["fit"].provenance}
            report["recipe"] = recipe(f"transfer {kind}", report["provenance"])
            (output / "report.json").write_bytes(to_json(report))
            (output / "report.html").write_bytes(html(transfer_page(report, table(report), notes(report))))
            return report

        return Job(make=work, name=f"{short_name(a.name)}-to-{short_name(b.name)}-{kind}")

    return run(f"transfer {kind}", plan, out, overwrite=overwrite)
