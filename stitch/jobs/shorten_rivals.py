"""What a shortened or grown model is compared with: models made of the same one, with no more FLOPs and no more bytes."""

from pathlib import Path

from stitch.composite.costs import Cost, halves
from stitch.composite.splice import Splice
from stitch.config import CompleteSettings
from stitch.files.store import Store
from stitch.frontier.alternative import Alternative, Means
from stitch.frontier.collect import alternatives
from stitch.frontier.own_tables import own_tables
from stitch.frontier.shortened import blocks_to_remove, least_change
from stitch.models.model import Model
from stitch.progress import Progress
from stitch.text.documents import Split
from stitch.text.windows import Windows

TABLES, SHORTENED, EXIT = "reference:own-tables", "reference:b-shortened", "reference:a-exit"


def means_of(
    settings: CompleteSettings, windows: dict[Split, Windows], limit: Cost, scratch: Path, progress: Progress | None,
    store: Store | None = None,
) -> Means:  # fmt: skip
    """What alternatives are made with, at most as costly as `limit`."""
    return Means(
        limit=limit, windows=windows, context=settings.context, ngrams=settings.ngrams, routes=settings.routes,
        seed=settings.seed, memory=settings.memory, scratch=scratch, progress=progress, store=store,
    )  # fmt: skip


def rivals(model: Model, splice: Splice, chosen: str, means: Means) -> dict[str, Alternative]:
    """The alternatives within `means.limit`, the cost of the model with the change `splice`, by row name.

    A grown model is compared with tables and, in the report, with the whole model: what is shortened further is worse than that.
    `reference:b-shortened` is left out where its range is that of the splice.
    """
    wanted = set()
    if splice.removes:
        wanted |= {EXIT} if exit_is_small(model, splice, means) else set()
        wanted |= set() if is_least_change(model, splice, means) else {SHORTENED}
    found = alternatives(model, model, (splice.early, splice.late), chosen, means, wanted.__contains__)
    tables = own_tables(model, means)
    made = {**({} if tables is None else {TABLES: tables}), **found}
    return {row: one for row, one in made.items() if one.cost.within(means.limit)}


def exit_is_small(model: Model, splice: Splice, means: Means) -> bool:
    """Whether an exit keeps within the bytes. It has a block less than the shortened model, as its map takes FLOPs."""
    if model.last_site < model.depth:
        return False
    return halves(model, len(splice.order) - 1, model, model.depth, means.context).bytes <= means.limit.bytes


def is_least_change(model: Model, splice: Splice, means: Means) -> bool:
    """Whether the blocks that the splice removes are those that `reference:b-shortened` would."""
    length = len(splice.changed)
    return blocks_to_remove(model, means) == length and least_change(model, length, means) == splice.early
