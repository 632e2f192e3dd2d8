"""A sweep's two long stages on a cluster: shards of activations, then cells, each worker with models of its own.

Workers run the functions that a sweep on one machine runs, on parts of the same work, so the numbers are the same. They meet in
the folder of the activations, which all machines must see.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from stitch.config import CompleteSettings
from stitch.jobs.cluster import Cluster
from stitch.jobs.stages import load_pair
from stitch.layers.cells import Cell, Harvest, ScoredCells, Side, harvest_all, score_cells
from stitch.models.model import Model
from stitch.progress import Progress
from stitch.text.windows import Windows

PARTS = 4  # for every worker, so that all end at about the same time


def harvest_on(
    cluster: Cluster,
    settings: CompleteSettings,
    windows: Windows,
    sites: dict[Side, Sequence[int]],
    folder: Path,
    progress: Progress | None = None,
) -> None:
    """Writes what `harvest_all` would: every worker some of the shards. Calling that afterwards finds them all."""
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
    """What `score_cells` gives, from workers that take some of the cells each."""
    for one in (fit, *held_out.values()):
        _ = one.keep  # found once, here, and sent along
    ordered = sorted(cells, key=lambda cell: cell.sites)
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
    """Of this worker; it keeps them from one task to the next."""
    a, b, _ = load_pair(settings)
    return {"a": a, "b": b}
