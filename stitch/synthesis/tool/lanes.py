"""The channels ("lanes") of a tool in a widened model, and the vectors that write to and read from them."""

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

ABSORBERS = 32  # channels that share minus the sum of all lanes

Look = tuple[int, int]
"""(block, how many windows back a head of that block looks)."""


@dataclass(frozen=True)
class Shape:
    """States, windows composed in a block, blocks that compose, and bits of a position."""

    states: int
    windows: int
    blocks: int
    bits: int

    def looks(self) -> list[Look]:
        """One for every head."""
        return [(block, back) for block in range(self.blocks) for back in range(1, self.windows)]

    def sizes(self) -> list[int]:
        """Sizes of all groups of lanes: windows before and after every block, a constant, positions, and for every head the
        positions that it looks for, and the windows that it fetches."""
        square, heads = self.states**2, len(self.looks())
        return [*[square] * (self.blocks + 1), 1, self.bits, *[self.bits] * heads, *[square] * heads]

    @property
    def lanes(self) -> int:
        return sum(self.sizes())

    @property
    def most_nonzero(self) -> int:
        """The largest number of lanes that are nonzero at one token."""
        heads = len(self.looks())
        return self.states * (self.blocks + 1 + heads) + 1 + self.bits * (1 + heads)


@dataclass(frozen=True)
class Lanes:
    """Channels of all groups of lanes.

    windows   before the first block and after every block: [from state, to state].
    constant  always 1. `position`: the bits of the token's position. `targets`: those of the position that a head looks for.
    fetched   the window that a head fetches: [from state, to state].
    writing   row c writes to channel c, and the opposite to the absorbers, so that the stream's mean does not change.
    reading   row c reads channel c minus the ground, a channel that nobody writes, so that the stream's mean does not matter.
    """

    shape: Shape
    windows: list[Tensor]
    constant: Tensor
    position: Tensor
    targets: dict[Look, Tensor]
    fetched: dict[Look, Tensor]
    writing: Float64[Tensor, "d d"]
    reading: Float64[Tensor, "d d"]

    @classmethod
    def of(cls, shape: Shape, first: int, width: int) -> "Lanes":
        """Lanes from channel `first` on, followed by the ground and the absorbers, in a model of that width."""
        groups = torch.arange(first, first + shape.lanes).split(shape.sizes())
        square = (shape.states, shape.states)
        ends = shape.blocks + 1
        looks = shape.looks()
        per_head = groups[ends + 2 :]
        writing = torch.eye(width, dtype=torch.float64)
        reading = writing.clone()
        ground = first + shape.lanes
        reading[:, ground] -= 1
        writing[:, ground + 1 : ground + 1 + ABSORBERS] -= 1 / ABSORBERS
        return cls(
            shape,
            windows=[group.view(square) for group in groups[:ends]],
            constant=groups[ends],
            position=groups[ends + 1],
            targets=dict(zip(looks, per_head[: len(looks)], strict=True)),
            fetched={look: group.view(square) for look, group in zip(looks, per_head[len(looks) :], strict=True)},
            writing=writing,
            reading=reading,
        )
