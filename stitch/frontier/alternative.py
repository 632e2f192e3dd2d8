"""What every alternative to a composite is made from, and what it is."""

from dataclasses import dataclass
from pathlib import Path

from stitch.composite.costs import Cost
from stitch.evaluation.scores import Logits
from stitch.progress import Progress
from stitch.text.documents import Split
from stitch.text.windows import Windows


@dataclass(frozen=True)
class Alternative:
    """A model made of one donor. `made` says in words what it is, after the donor's name."""

    made: str
    cost: Cost
    logits: Logits


@dataclass(frozen=True, kw_only=True)
class Means:
    """What alternatives are made with, the same as the composite's: text, n-gram rows, seed, memory in bytes.

    `limit` is the cost of the composite. Activations are written to `scratch`.
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
