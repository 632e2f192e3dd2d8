"""The two long stages of a sweep on a cluster: harvesting files of activations, then scoring cells.

Workers load both models and run the same functions as a sweep on one machine on parts of the work, so the numbers are the same.
They exchange activations through a folder that all machines must see.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from stitch.config import CompleteSettings
from stitch.jobs.cluster import Cluster
from stitch.jobs.pair.models import load_pair
from stitch.layers.cells import ScoredCells, score_cells
from stitch.layers.streams import Cell, Harvest, Side, harvest_all
from stitch.models.model import Model
from stitch.progress import Progress
from stitch.text.windows import Windows

PARTS = 4  # per worker, so that all workers finish at about the same time


def harvest_on(
    cluster: Cluster,
    settings: CompleteSettings,
    windows: Windows,
    sites: dict[Side, Sequence[int]],
    folder: Path,
    progress: Progress | None = None,
) -> None:
    """Writes the files that `harvest_all` would write, some by each worker. `harvest_all` then finds them all on disk."""
    items = [(settings, windows, sites, folder, (part, cluster.workers)) for part in range(cluster.workers)]
    cluster.run(_harvest, items, progress, f"activations of the {folder.name} split (parts)")


def score_on(
    cluster: Cluster,
    settings: CompleteSettings,
    cells: Sequence[Cell],
    fit: Harvest,
    held_out: dict[str, Harvest],
    reference: str | None,
    progress: Progress | None = None,
) -> ScoredCells:
    """The result of `score_cells`, with the cells spread over the workers."""
    for one in (fit, *held_out.values()):
        _ = one.keep  # computed once here and cached, so that it is sent along
    ordered = sorted(cells, key=lambda cell: cell.ends)
    size = -(-len(ordered) // (PARTS * cluster.workers))
    parts = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    items = [(settings, part, fit, held_out, reference) for part in parts]
    found: list[ScoredCells] = cluster.run(_score, items, progress, "pairs of sites scored (parts)")
    rows = {cell: row for one in found for cell, row in one.rows.items()}
    nulls = {end: row for one in found for end, row in one.nulls.items()}
    return ScoredCells({cell: rows[cell] for cell in cells}, nulls)


def _harvest(
    settings: CompleteSettings, windows: Windows, sites: dict[Side, Sequence[int]], folder: Path, part: tuple[int, int]
) -> None:
    harvest_all(_models(settings), windows, sites, folder, settings.memory, part=part)


def _score(
    settings: CompleteSettings, cells: Sequence[Cell], fit: Harvest, held_out: dict[str, Harvest], reference: str | None
) -> ScoredCells:
    return score_cells(_models(settings), cells, fit, held_out, reference=reference, memory=settings.memory)


@lru_cache(maxsize=1)
def _models(settings: CompleteSettings) -> dict[Side, Model]:
    """Both models. A worker keeps them from one task to the next."""
    a, b, _ = load_pair(settings)
    return {"a": a, "b": b}
