"""Which keys of a text are rare tokens or follow an earlier copy of a token, and how often that is so by chance."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stitch.text.windows import Windows

RAREST = 0.25  # share of the text's tokens that count as rare


@dataclass(frozen=True)
class Kinds:
    """Kinds of keys in windows of `ids`. Far keys are more than `far` tokens before the query and are not BOS.

    `others[w, t]` is the token at place t of another window: the null for the query's own. `rare_share` is the share of keys
    that are rare, and `copies_at[d]`, `other_copies_at[d]` the shares of keys d tokens back that follow a copy of the query's
    token, or of the other window's; all of keys that start no text.
    """

    ids: Int[Tensor, "windows t"]
    others: Int[Tensor, "windows t"]
    rare: Bool[Tensor, "windows t"]
    start: int
    far: int
    rare_share: float
    copies_at: Float[Tensor, " t"]
    other_copies_at: Float[Tensor, " t"]

    def far_keys(self, rows: slice) -> Bool[Tensor, "rows 1 t t"]:
        place = torch.arange(self.ids.shape[1])
        back = place[:, None] - place
        return ((back > self.far) & (self.ids[rows] != self.start)[:, None])[:, None]

    def rare_keys(self, rows: slice) -> Bool[Tensor, "rows 1 1 t"]:
        return self.rare[rows][:, None, None]

    def after_copies(self, rows: slice, of: Int[Tensor, "windows t"]) -> Bool[Tensor, "rows 1 t t"]:
        """Keys whose preceding token is that of the query in `of`: what an induction head looks at, of `ids`."""
        ids = self.ids[rows]
        before = torch.cat([torch.full_like(ids[:, :1], -1), ids[:, :-1]], 1)
        return (of[rows][:, :, None] == before[:, None])[:, None]


def kinds_of(ids: Int[Tensor, "windows t"], start: int | None, far: int) -> Kinds:
    """The kinds of keys in `ids`. Rare are those tokens that occur least, together at most RAREST of the text without starts."""
    ids, start = ids.long(), -1 if start is None else start
    others = ids.roll(1, 0) if len(ids) > 1 else ids.roll(ids.shape[1] // 2, 1)
    found, counts = ids[ids != start].unique(return_counts=True)
    counts, order = counts.sort()
    rare = torch.isin(ids, found[order][counts.cumsum(0) <= RAREST * counts.sum()])
    share = float(rare.sum() / (ids != start).sum().clamp_min(1))
    return Kinds(ids, others, rare, start, far, share, _copies_at(ids, ids, start), _copies_at(ids, others, start))


def _copies_at(ids: Int[Tensor, "windows t"], of: Int[Tensor, "windows t"], start: int) -> Float[Tensor, " t"]:
    """By distance, the share of keys behind a copy of the query's token in `of`."""
    length = ids.shape[1]
    found = torch.zeros(length)
    for distance in range(1, length - 1):
        keys, before = ids[:, 1 : length - distance], ids[:, : length - distance - 1]
        counted = keys != start
        copies = (of[:, distance + 1 :] == before) & counted
        found[distance] = copies.sum() / counted.sum().clamp_min(1)
    return found


def by_distance(values: Float[Tensor, " t"]) -> Float[Tensor, "t t"]:
    """The value of each query's distance to each key before it."""
    place = torch.arange(len(values))
    return values[(place[:, None] - place).clamp_min(0)]


def shuffled_windows(windows: Windows, seed: int) -> Windows:
    """The windows with their tokens in random order, each behind its first: whether order decides what heads look at."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(windows.ids[:, 1:].shape, generator=generator).argsort(1)

    def mixed(part: Int[Tensor, "windows t"]) -> Int[Tensor, "windows t"]:
        return torch.cat([part[:, :1], part[:, 1:].gather(1, order)], 1)

    return Windows(mixed(windows.ids), mixed(windows.document))
