"""The activations of two models on the same tokens, and what is left out of a fit."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stitch.activations.harvest import Activations
from stitch.errors import StitchError

SINK_RATIO = 10.0  # a token whose norm exceeds the median this many times is a sink, not text


@dataclass(frozen=True)
class Tokens:
    """Some tokens with what a translation may read of them: streams by (site, tokens back), zero where these are absent;
    ids of the token and those before it, −1 where there are none; the position; B's stream, which is to be predicted."""

    streams: dict[tuple[int, int], Float[Tensor, "_ d_a"]]
    ids: Int[Tensor, "_ reach"]
    positions: Int[Tensor, " _"]
    target: Float[Tensor, "_ d_b"]


@dataclass(frozen=True)
class Paired:
    """The same tokens seen by A at one site and by B at another. `keep` leaves out BOS at position 0 and either model's sinks."""

    a: Activations
    b: Activations
    site_a: int
    site_b: int
    keep: Bool[Tensor, "windows context"]

    @property
    def tokens(self) -> int:
        return int(self.keep.sum())

    @property
    def width_a(self) -> int:
        return self.a.width(self.site_a)

    @property
    def width_b(self) -> int:
        return self.b.width(self.site_b)

    def sample(self, tokens: int, seed: int) -> "Paired":
        """The same pair with random windows of about `tokens` tokens kept; itself if it has no more."""
        if self.tokens <= tokens:
            return self
        generator = torch.Generator().manual_seed(seed)
        count = max(1, round(len(self.keep) * tokens / self.tokens))
        chosen = torch.zeros(len(self.keep), dtype=torch.bool)
        chosen[torch.randperm(len(self.keep), generator=generator)[:count]] = True
        return replace(self, keep=self.keep & chosen[:, None])

    def shard(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Kept rows of a shard: x [tokens, width_a], y [tokens, width_b], ids [tokens]."""
        rows = self.a.rows(index)
        keep = self.keep[rows]
        x, y = self.a.read(index, self.site_a), self.b.read(index, self.site_b)
        return x[keep], y[keep], self.a.windows.ids[rows][keep].long()

    def chunks(self, tokens: int = 8192) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """All kept rows in text order, at most `tokens` at a time."""
        for index in range(self.a.shards):
            x, y, ids = self.shard(index)
            yield from zip(x.split(tokens), y.split(tokens), ids.split(tokens), strict=True)

    def with_history(self, streams: Sequence[tuple[int, int]], reach: int, tokens: int = 8192) -> Iterator[Tokens]:
        """All kept rows in text order, at most `tokens` at a time, with streams of A by (site, back) and `reach` ids back.

        A stream before a window's second token counts as absent, as in `TranslationInputs`; rows whose previous
        token is a sink are left out.
        """
        place = torch.arange(self.keep.shape[1])
        usable = self.keep.clone()
        usable[:, 2:] &= self.keep[:, 1:-1]
        for index in range(self.a.shards):
            rows = self.a.rows(index)
            keep, ids = usable[rows], self.a.windows.ids[rows].long()
            past = torch.stack([_ago(ids, back, -1) for back in range(reach + 1)], -1)
            stored = {site: self.a.read(index, site) for site in {site for site, _ in streams}}
            found = {}
            for site, back in streams:
                before = _ago(stored[site], back, 0)
                if back:
                    before[:, : back + 1] = 0
                found[site, back] = before[keep].split(tokens)
            parts = past[keep].split(tokens), place.expand_as(ids)[keep].split(tokens)
            target = self.b.read(index, self.site_b)[keep].split(tokens)
            for number in range(len(target)):
                chosen = {key: value[number] for key, value in found.items()}
                yield Tokens(chosen, parts[0][number], parts[1][number], target[number])

    def batches(self, size: int, *, seed: int, group: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless shuffled batches of paired rows, from batch `start` on; the order is a pure function of the seed.

        Every epoch visits the shards in a fresh order, `group` of them in memory at a time, rows shuffled within the group; what
        does not fill a batch at the end of a group is left out of that epoch.
        """
        kept = [int(self.keep[self.a.rows(index)].sum()) for index in range(self.a.shards)]
        done, epoch = 0, 0
        if sum(kept) < size:
            raise StitchError(
                f"a batch needs {size} tokens; the text has {sum(kept)}: give more text or raise --tokens."
            )
        while True:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
            order = torch.randperm(self.a.shards, generator=generator).tolist()
            for position in range(0, len(order), group):
                members = order[position : position + group]
                count = sum(kept[index] for index in members)
                shuffle = torch.randperm(count, generator=generator)
                usable = count // size
                if done + usable > start:
                    parts = [self.shard(index) for index in members]
                    x, y = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
                    for number in range(max(0, start - done), usable):
                        chosen = shuffle[number * size : (number + 1) * size]
                        yield x[chosen], y[chosen]
                done += usable
            epoch += 1


def _ago(sequence: Tensor, back: int, absent: int) -> Tensor:
    """[windows, context, …] moved `back` tokens on; always a copy."""
    moved = torch.full_like(sequence, absent)
    moved[:, back:] = sequence[:, : sequence.shape[1] - back]
    return moved


def without_sinks(activations: Activations, sites: Iterable[int]) -> Bool[Tensor, "windows context"]:
    """Tokens to fit on: not BOS at position 0, a sink at none of `sites`.

    Sinks reach 10⁵ times the median norm and would own every least-squares fit; they are found by norm, with the median of the
    first shard as the yardstick. BOS at position 0 has no context, so it is a constant and needs no fit.
    """
    keep = torch.ones(activations.windows.ids.shape, dtype=torch.bool)
    keep[:, 0] = False
    for site in sites:
        limit = None
        for index in range(activations.shards):
            norms = activations.read(index, site).float().norm(dim=-1)
            if limit is None:
                limit = SINK_RATIO * norms[:, 1:].median()
            keep[activations.rows(index)] &= norms <= limit
    return keep


def pair(a: Activations, b: Activations, site_a: int, site_b: int) -> Paired:
    """Joins two harvests of the same windows and marks the rows to fit on: those that are text to both models."""
    return Paired(a, b, site_a, site_b, without_sinks(a, [site_a]) & without_sinks(b, [site_b]))
