"""What every alternative to a composite is made from, and what it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stitch.activations.harvest import Activations, harvest
from stitch.composite.costs import Cost
from stitch.composite.cuts import exact_streams_from
from stitch.evaluation.scores import Logits
from stitch.files.store import Store
from stitch.models.model import Model
from stitch.progress import Progress, Steps
from stitch.text.documents import Split
from stitch.text.windows import Windows
from stitch.translation.packing import pack, steps
from stitch.translation.types import Translation


@dataclass(frozen=True)
class Alternative:
    """A model made of one donor. `made` says in words what it is, after the donor's name."""

    made: str
    cost: Cost
    logits: Logits


@dataclass(frozen=True, kw_only=True)
class Means:
    """What alternatives are made with, the same as the composite's: text, n-gram rows, seed, memory in bytes.

    `limit` is the cost of the composite. Activations are written to `scratch`. `store` has those of earlier runs, and of the
    composite's own fit: a model runs on from the last site that is there. It is only read, as what is new is larger than what
    the composite itself needs, and would drive that out.
    """

    limit: Cost
    windows: dict[Split, Windows]
    context: int
    ngrams: int
    routes: int | None
    seed: int
    memory: int
    scratch: Path
    progress: Progress | None = None
    store: Store | None = None

    def harvested(
        self, model: Model, windows: Windows, sites: Sequence[int], place: Path, per_shard: int
    ) -> Activations:  # fmt: skip
        """The streams of `model` at `sites`, written to `place`; `per_shard` as in `harvest`."""
        return harvest(
            model, windows, sites, place, per_shard=per_shard, store=self.store, keep=False, late=exact_streams_from,
            progress=self.progress,
        )  # fmt: skip

    def packed(
        self, tables: Translation, limit: int, model: Model, multiply_adds: int | None = None
    ) -> Translation:  # fmt: skip
        """The translation within `limit` bytes, read by `model`, as `pack` makes it."""
        step = Steps("packing of an alternative (tables, at most)", steps(tables), self.progress)
        found = pack(
            tables, limit, self.windows["fit"].ids, model.vocabulary, model.dtype, memory=self.memory,
            multiply_adds=multiply_adds, tick=step,
        )  # fmt: skip
        step.end()
        return found
