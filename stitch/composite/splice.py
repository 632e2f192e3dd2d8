"""Which blocks run, and where, when a model leaves out a range of its blocks or runs it twice."""

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Splice:
    """A model's first `early` blocks, and then its blocks from `late` on.

    With `early` < `late` the blocks between are removed; with `early` > `late` blocks `late`..`early`−1 run a second time.
    """

    depth: int
    early: int
    late: int

    @property
    def removes(self) -> bool:
        return self.early < self.late

    @property
    def changed(self) -> range:
        """The blocks that are removed or run twice."""
        return range(*sorted((self.early, self.late)))

    @property
    def order(self) -> list[int]:
        """By block of the new model, the block of the whole model that it is."""
        return [*range(self.early), *range(self.late, self.depth)]

    @property
    def seam(self) -> int:
        """The block of the new model at which it rejoins the whole one: the next after the gap, or after the second run."""
        return self.early if self.removes else 2 * self.early - self.late

    @property
    def expected(self) -> int:
        """The site of the whole model whose stream the block at the seam expects."""
        return max(self.early, self.late)

    @property
    def shared(self) -> int:
        """The last site, of both models, that the new model reaches with the whole one's stream before the refitted block."""
        return self.early - 1 if self.removes else self.early

    @property
    def in_words(self) -> str:
        """What the new model is, to follow the model's name: "without blocks 2 to 3"."""
        first, last = self.changed[0], self.changed[-1]
        if len(self.changed) == 1:
            return f"without block {first}" if self.removes else f"with block {first} twice"
        return f"without blocks {first} to {last}" if self.removes else f"with blocks {first} to {last} twice"

    def moved(self, first: int) -> "Splice":
        """The same change at as many blocks from block `first` on."""
        last = first + len(self.changed)
        return Splice(self.depth, first, last) if self.removes else Splice(self.depth, last, first)

    @property
    def elsewhere(self) -> list["Splice"]:
        """The same change at every other range of as many blocks. A removal keeps block 0."""
        starts = range(1 if self.removes else 0, self.depth - len(self.changed) + 1)
        return [self.moved(first) for first in starts if first != self.changed[0]]

    def drawn(self, count: int, seed: int) -> list["Splice"]:
        """`count` of those other ranges at random, or all where there are fewer: the null of the choice of a range."""
        others = self.elsewhere
        chosen = random.Random(seed).sample(range(len(others)), min(count, len(others)))
        return [others[number] for number in sorted(chosen)]
