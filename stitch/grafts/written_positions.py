"""A donor's learned positions placed in a host with rotary ones, and written there."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stitch.grafts.first_token import FirstTokenHeads
from stitch.grafts.frame import Frame
from stitch.grafts.placing import Transfer
from stitch.grafts.position_heads import HEADS, PositionHeads, one_for_all, position_heads
from stitch.internals import weights
from stitch.models.model import Model


@dataclass(frozen=True)
class PlacedPositions:
    """A donor's learned `table` of positions in a host with rotary ones. `heads` are in block 0 of the host, whose key heads they
    read from `first_group` on, `shared` heads each. The token `bos` begins every text."""

    table: Float[Tensor, "positions d"]
    heads: PositionHeads
    first_group: int
    shared: int
    bos: int

    @property
    def blocks(self) -> int:
        """How many blocks of the host come before those of the donor."""
        return int(bool(self.heads.profiles))

    @property
    def groups(self) -> range:
        """The key heads of the host that they take."""
        return range(self.first_group, self.first_group - (-len(self.heads.profiles) // self.shared))

    @property
    def queries(self) -> list[int]:
        """The numbers of the heads in the host."""
        first = self.first_group * self.shared
        return list(range(first, first + len(self.heads.profiles)))

    def lost(self, length: int) -> Float[Tensor, "length d"]:
        """What the host lacks of the first positions."""
        return self.table[:length] - self.heads.written[:length]

    def added_to(self, embedding: Float[Tensor, "vocabulary d"]) -> Float[Tensor, "vocabulary d"]:
        """The embedding with what it has of the positions."""
        total = embedding + self.heads.others
        total[self.bos] += self.heads.bos - self.heads.others
        return total

    def described(self) -> dict:
        """As the report has it."""
        return {"heads": len(self.heads.profiles), "lost": self.heads.lost}


def ways_to_place(
    transfer: Transfer, bos: int | None, length: int, *, heads_fit: bool, reserved: int
) -> list[PlacedPositions | None]:
    """What can become of the donor's positions in the host: None if they need nothing, as the host has learned ones too or the
    donor has none.

    Heads are in the host's block 0, where `reserved` key heads are left to others. `heads_fit`: there is a block to spare for
    them. Without heads all tokens but BOS get the mean position; where no token `bos` begins every text, all of them that of the
    first `length` positions.
    """
    table = weights.positions(transfer.donor)
    if table is None or not transfer.scheme.loses_positions:
        return [None]
    table, host = table[: transfer.host.longest].double().cpu(), transfer.host
    attention = weights.attention(host, 0)
    key_heads, shared = attention.k.shape[1], attention.shared
    if bos is None:
        return [PlacedPositions(table, one_for_all(table[:length]), 0, shared, 0)]
    free = max(transfer.space.groups_left(0, key_heads) - reserved, 0) if heads_fit else 0
    first = transfer.space.groups.get(0, 0)
    return [
        PlacedPositions(table, position_heads(table, transfer.scheme.host_frequencies, count), first, shared, bos)
        for count in sorted({0, min(HEADS, free * shared)})
    ]


def write_positions(
    host: Model, positions: PlacedPositions, frame: Frame, ids: Int64[Tensor, "prompts length"]
) -> None:
    """Writes the heads into block 0 of the host, whose embedding has been written. `ids` are prompts to calibrate on."""
    if not positions.heads.profiles:
        return
    written = FirstTokenHeads.of(host, 0, frame, ids)
    for group in positions.groups:
        written.write_key_head(group)
    for query, profile, vector in zip(positions.queries, positions.heads.profiles, positions.heads.write, strict=True):
        queries = torch.cat([profile.phase.cos(), -profile.phase.sin()]) * profile.amplitude.repeat(2)
        written.write_head(query, queries, vector)
