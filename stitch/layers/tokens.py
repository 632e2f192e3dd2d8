"""Which keys of a text are rare tokens or follow an earlier copy of the query's token, and how often that is so by chance."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stitch.text.windows import Windows

RAREST = 0.25  # share of the text's tokens that count as rare


@dataclass(frozen=True)
class Kinds:
    """Kinds of keys in windows of `ids`. Far keys are more than `far` tokens back and start no text.

    `rare_by_place[j]` and `copies_by_distance[d]` are the shares of windows, and of queries, where a key at that place, or so far
    back, is rare or follows a copy.
    """

    ids: Int[Tensor, "windows t"]
    rare: Bool[Tensor, "windows t"]
    start: int
    far: int
    rare_by_place: Float[Tensor, " t"]
    copies_by_distance: Float[Tensor, " t"]

    def far_keys(self, rows: slice) -> Bool[Tensor, "windows 1 t t"]:
        place = torch.arange(self.ids.shape[1])
        back = place[:, None] - place
        return ((back > self.far) & (self.ids[rows] != self.start)[:, None])[:, None]

    def rare_keys(self, rows: slice) -> Bool[Tensor, "windows 1 1 t"]:
        return self.rare[rows][:, None, None]

    def after_copies(self, rows: slice) -> Bool[Tensor, "windows 1 t t"]:
        """Keys whose preceding token is the query's token: what an induction head looks at."""
        ids = self.ids[rows]
        before = torch.cat([torch.full_like(ids[:, :1], -1), ids[:, :-1]], 1)
        return (ids[:, :, None] == before[:, None])[:, None]

    @property
    def copies_expected(self) -> Float[Tensor, "t t"]:
        place = torch.arange(self.ids.shape[1])
        return self.copies_by_distance[(place[:, None] - place).clamp_min(0)]


def kinds_of(ids: Int[Tensor, "windows t"], start: int | None, far: int) -> Kinds:
    """The kinds of keys in `ids`. Rare are those tokens that occur least, together RAREST of the text without its starts."""
    ids, start = ids.long(), -1 if start is None else start
    found, counts = ids[ids != start].unique(return_counts=True)
    counts, order = counts.sort()
    rare = torch.isin(ids, found[order][counts.cumsum(0) <= RAREST * counts.sum()])
    by_distance = torch.zeros(ids.shape[1])
    for distance in range(1, ids.shape[1] - 1):
        # The key so far back follows the token that is one further back.
        by_distance[distance] = (ids[:, distance + 1 :] == ids[:, : -distance - 1]).float().mean()
    return Kinds(ids, rare, start, far, rare.float().mean(0), by_distance)


def shuffled_windows(windows: Windows, seed: int) -> Windows:
    """The windows with their tokens in random order, each behind its first: the null of what heads look at."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(windows.ids[:, 1:].shape, generator=generator).argsort(1)

    def mixed(part: Int[Tensor, "windows t"]) -> Int[Tensor, "windows t"]:
        return torch.cat([part[:, :1], part[:, 1:].gather(1, order)], 1)

    return Windows(mixed(windows.ids), mixed(windows.document))
