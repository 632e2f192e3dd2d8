"""The residual streams of both sites on disk, and what bridges them where both models are the same."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stitch.activations.harvest import Activations, harvest, windows_per_shard
from stitch.activations.paired import Paired, pair
from stitch.composite.bridges import fit_bridges, sites_of
from stitch.composite.cuts import exact_streams_from
from stitch.composite.splice import Splice
from stitch.composite.surgery import Bridge, why_not_foldable
from stitch.config import CompleteSettings
from stitch.files.store import Store
from stitch.models.anatomy import blocks_before_last_part
from stitch.models.model import Model
from stitch.progress import Progress
from stitch.text.documents import Split
from stitch.text.windows import Windows
from stitch.translation.available import earlier_sites


def harvest_pair(
    settings: CompleteSettings,
    a: Model,
    b: Model,
    windows: Windows,
    folder: Path,
    progress: Progress | None = None,
    store: Store | None = None,
    also: Sequence[int] = (),
) -> Paired:
    """Writes the activations of both sites to `folder`, in one pass when A is B; those that `store` has are taken from there.

    `also` are further sites of a model that is both A and B.
    """

    def one(request: HarvestRequest) -> Activations:
        return harvest(
            request.model, windows, request.sites, folder / request.name, per_shard=request.per_shard, store=store,
            late=exact_streams_from, progress=progress,
        )  # fmt: skip

    found = [one(request) for request in harvest_requests(settings, a, b, also)]
    return pair(found[0], found[-1], settings.layer, settings.layer_b)


@dataclass(frozen=True)
class HarvestRequest:
    """Sites of one model whose activations are written, so many windows per shard; `name` is the side, or "ab" for both."""

    model: Model
    sites: list[int]
    name: str
    per_shard: int


def harvest_requests(settings: CompleteSettings, a: Model, b: Model, also: Sequence[int] = ()) -> list[HarvestRequest]:
    """What `harvest_pair` writes of each split: a request for each model, or one where A is B."""
    early = [*earlier_sites(settings.layer, blocks_before_last_part(a.config)), settings.layer]
    sites = sorted({*early, settings.layer_b, *bridging_sites(settings, a, b), *also}) if a is b else early
    width = sum(map(a.width_at, sites)) + (0 if a is b else b.width)
    per_shard = windows_per_shard(settings.context, width, a.dtype, settings.memory)
    if a is b:
        return [HarvestRequest(a, sites, "ab", per_shard)]
    return [HarvestRequest(a, sites, "a", per_shard), HarvestRequest(b, [settings.layer_b], "b", per_shard)]


def bridging_sites(settings: CompleteSettings, a: Model, b: Model) -> list[int]:
    """Sites that `bridge_pair` reads; none where it has nothing to do."""
    sites = settings.layer, settings.layer_b
    if a is not b or settings.brief:
        return []
    return sites_of(Splice(a.depth, *sites)) if why_not_foldable(a, *sites, settings.memory) is None else []


def bridge_pair(
    settings: CompleteSettings, a: Model, b: Model, paired: dict[Split, Paired], progress: Progress | None = None
) -> dict[str, Bridge]:
    """Where A is B and blocks are left out or repeated, the bridges over the seam (see `fit_bridges`); otherwise none."""
    if not bridging_sites(settings, a, b):
        return {}
    streams: dict[Split, Activations] = {split: paired[split].a for split in ("fit", "sweep")}
    splice = Splice(a.depth, *settings.sites)
    return fit_bridges(a, splice, streams, memory=settings.memory, seed=settings.seed, progress=progress)
