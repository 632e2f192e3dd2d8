"""The null of depth surgery: the same change at other ranges of blocks, bridged in the same way as the written one."""

from collections.abc import Mapping, Sequence

from stitch.activations.harvest import Activations
from stitch.composite.bridges import fit_bridge, sites_of
from stitch.composite.splice import Splice
from stitch.composite.surgery import Bridge, refits, why_not_foldable, why_not_spliced
from stitch.config import CompleteSettings
from stitch.models.model import Model
from stitch.progress import Progress, counted
from stitch.text.documents import Split

DRAWS = 3


def other_ranges(model: Model, settings: CompleteSettings) -> list[Splice]:
    """A few other ranges of as many blocks, drawn at random, without those that cannot be bridged."""

    def is_possible(other: Splice) -> bool:
        if not is_refitted(model, settings):
            return why_not_spliced(model, other.early, other.late) is None
        readable = max(sites_of(other)) <= model.last_site
        return readable and why_not_foldable(model, other.early, other.late, settings.memory) is None

    drawn = Splice(model.depth, *settings.sites).drawn(DRAWS, settings.seed)
    return [other for other in drawn if is_possible(other)]


def is_refitted(model: Model, settings: CompleteSettings) -> bool:
    """Whether weights may be refitted, which is known before a bridge is chosen."""
    return settings.translation != "identity" and refits(model)


def sites_of_ranges(model: Model, others: Sequence[Splice], settings: CompleteSettings) -> list[int]:
    """The sites of the whole model that bridging them reads."""
    return sorted({site for other in others for site in sites_of(other)}) if is_refitted(model, settings) else []


def bridge_ranges(
    row: str,
    model: Model,
    others: Sequence[Splice],
    streams: Mapping[Split, Activations],
    memory: int,
    progress: Progress | None,
) -> dict[Splice, Bridge]:
    """The bridge `row` of each range, fitted on the same text as that of the written one. `memory` is in bytes."""
    return {
        other: fit_bridge(row, model, other, streams, memory=memory, progress=progress)
        for other in counted(others, "bridges of other ranges (ranges)", progress)
    }
