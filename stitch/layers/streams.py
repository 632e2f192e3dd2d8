"""The streams of two models at many sites, harvested once for all pairs of them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from jaxtyping import Bool, Float, Int64
from torch import Tensor

from stitch.activations.harvest import Activations, harvest, windows_per_shard
from stitch.activations.paired import Paired, without_sinks
from stitch.composite.cuts import exact_streams_from
from stitch.files.store import Store
from stitch.models.model import Model
from stitch.progress import Progress
from stitch.text.windows import Windows
from stitch.translation.inputs import ByToken

Side = Literal["a", "b"]


@dataclass(frozen=True, order=True)
class Cell:
    """The first `i` blocks of the model `source`, a translation, and the blocks of `target` (maybe the same) from `j` on."""

    source: Side
    i: int
    target: Side
    j: int

    @property
    def ends(self) -> list[tuple[Side, int]]:
        """Both sites, in the same order for both directions, which share their sums."""
        return sorted([(self.source, self.i), (self.target, self.j)])


@dataclass(frozen=True)
class Harvest:
    """The residual streams at the harvested sites of both models, over the windows of one split."""

    sides: dict[Side, Activations]

    @property
    def windows(self) -> Windows:
        return self.sides["a"].windows

    @cached_property
    def keep(self) -> Bool[Tensor, "windows context"]:
        """The tokens to fit on: without BOS at position 0, and without tokens that are a sink at any site. They are the same
        for all pairs, so that sums can be shared."""
        return without_sinks(self.sides["a"], self.sides["a"].sites) & without_sinks(
            self.sides["b"], self.sides["b"].sites
        )

    def paired(self, cell: Cell) -> Paired:
        """The streams at the two sites of a cell."""
        return Paired(self.sides[cell.source], self.sides[cell.target], cell.i, cell.j, self.keep)

    def chunks(self, names: Iterable[str], tables: dict[str, ByToken], tokens: int) -> Iterator[dict[str, Tensor]]:
        """The kept rows of variables, `tokens` at a time: "a.3" is a site of model a, "embedding.b" a row of `tables`."""
        names = sorted(names)
        for shard in range(self.sides["a"].shards):
            rows = self.sides["a"].rows(shard)
            keep = self.keep[rows]
            ids = self.windows.ids[rows][keep].long().split(tokens)
            streams = {name: self._read(name, shard)[keep].split(tokens) for name in names if name not in tables}
            for number, part in enumerate(ids):
                yield {
                    name: _rows(tables[name], part) if name in tables else streams[name][number].float()
                    for name in names
                }

    def _read(self, name: str, shard: int) -> Float[Tensor, "windows context d"]:
        side, _, site = name.partition(".")
        return self.sides["a" if side == "a" else "b"].read(shard, int(site))


def harvest_all(
    models: dict[Side, Model],
    windows: Windows,
    sites: dict[Side, Sequence[int]],
    folder: Path,
    memory: int,
    progress: Progress | None = None,
    *,
    part: tuple[int, int] = (0, 1),
    store: Store | None = None,
) -> Harvest:
    """Writes the streams of both models at all `sites` to `folder`, with one pass per model, or one in all if both are the same.

    `memory` is in bytes; `part` and `store` are those of `harvest`.
    """
    same = models["a"] is models["b"]
    if same:
        both = sorted({*sites["a"], *sites["b"]})
        sites = {"a": both, "b": both}
    width = sum(models[side].width * len(sites[side]) for side in models)
    per_shard = windows_per_shard(windows.context, width, models["a"].dtype, memory)
    found: dict[Side, Activations] = {}
    for side, model in models.items():
        if same and found:
            found[side] = found["a"]
            continue
        found[side] = harvest(
            model, windows, sites[side], folder / side, per_shard=per_shard, part=part, store=store, late=exact_streams_from,
            progress=progress,
        )  # fmt: skip
    return Harvest(found)


def _rows(table: ByToken, ids: Int64[Tensor, " tokens"]) -> Float[Tensor, "tokens d"]:
    return table.table[table.numbers(ids).to(table.table.device)].cpu()
