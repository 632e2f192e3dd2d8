"""The activations of two models on the same tokens, without those that would distort a fit."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stitch.activations.harvest import Activations
from stitch.errors import StitchError

SINK_RATIO = 10.0  # a token whose norm exceeds this many times the median is an attention sink


@dataclass(frozen=True)
class Tokens:
    """A chunk of tokens with the inputs and the target of a translation.

    `streams` of A by (site, tokens back), zero where there is no such token; `ids` of the token and those before it, −1 where
    there is none; `positions` in the window; `target`, the stream of B.
    """

    streams: dict[tuple[int, int], Float[Tensor, "_ d_a"]]
    ids: Int[Tensor, "_ reach"]
    positions: Int[Tensor, " _"]
    target: Float[Tensor, "_ d_b"]


@dataclass(frozen=True)
class Paired:
    """Activations of A at one site and of B at another on the same tokens.

    `keep` marks the tokens to fit on: all but BOS at position 0, the sinks of either model, and those that end inside a token of
    a model's own tokenizer.
    """

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
        """The same pair with about `tokens` tokens kept, in random windows; itself if it has no more than that."""
        if self.tokens <= tokens:
            return self
        generator = torch.Generator().manual_seed(seed)
        count = max(1, round(len(self.keep) * tokens / self.tokens))
        chosen = torch.zeros(len(self.keep), dtype=torch.bool)
        chosen[torch.randperm(len(self.keep), generator=generator)[:count]] = True
        return replace(self, keep=self.keep & chosen[:, None])

    def shard(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """The kept tokens of a shard: x [tokens, width_a], y [tokens, width_b], ids [tokens]."""
        rows = self.a.rows(index)
        keep = self.keep[rows]
        x, y = self.a.read(index, self.site_a), self.b.read(index, self.site_b)
        return x[keep], y[keep], self.a.windows.ids[rows][keep].long()

    def chunks(self, tokens: int = 8192) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """`shard` for all kept tokens in text order, at most `tokens` at a time."""
        for index in range(self.a.shards):
            x, y, ids = self.shard(index)
            yield from zip(x.split(tokens), y.split(tokens), ids.split(tokens), strict=True)

    def first(self, tokens: int) -> Float[Tensor, "tokens width_a"]:
        """A's stream at the first `tokens` kept tokens of the text, or at all where there are fewer."""
        found, count = [], 0
        for index in range(self.a.shards):
            if count >= tokens:
                break
            found.append(self.a.read(index, self.site_a)[self.keep[self.a.rows(index)]])
            count += len(found[-1])
        return torch.cat(found)[:tokens]

    def with_history(self, streams: Sequence[tuple[int, int]], reach: int, tokens: int = 8192) -> Iterator[Tokens]:
        """Kept tokens in text order, at most `tokens` at a time, with streams of A by (site, back) and `reach` ids back.

        Streams of a window's first token count as absent, as in `TranslationInputs` of stitch/modeling/modeling_translation.py.
        Tokens whose previous token is a sink are left out.
        """
        usable = self.keep.clone()
        usable[:, 2:] &= self.keep[:, 1:-1]
        for index in range(self.a.shards):
            keep = usable[self.a.rows(index)]
            found = {key: stream[keep].split(tokens) for key, stream in self._past_streams(index, streams)}
            ids = self.a.windows.ids[self.a.rows(index)].long()
            past = torch.stack([_ago(ids, back, -1) for back in range(reach + 1)], -1)[keep].split(tokens)
            positions = torch.arange(ids.shape[1]).expand_as(ids)[keep].split(tokens)
            target = self.b.read(index, self.site_b)[keep].split(tokens)
            for number in range(len(target)):
                chosen = {key: value[number] for key, value in found.items()}
                yield Tokens(chosen, past[number], positions[number], target[number])

    def _past_streams(
        self, shard: int, streams: Sequence[tuple[int, int]]
    ) -> Iterator[tuple[tuple[int, int], Float[Tensor, "windows context d_a"]]]:
        """Streams of A in a shard with their (site, back), zero where absent; one at a time, to save memory."""
        stored = {site: self.a.read(shard, site) for site in {site for site, _ in streams}}
        for site, back in streams:
            stream = _ago(stored[site], back, 0)
            if back:
                stream[:, : back + 1] = 0
            yield (site, back), stream

    def batches(self, size: int, *, seed: int, group: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless shuffled batches (x, y) of `size` kept tokens, from batch number `start` on; the seed decides their order.

        Every epoch reads the shards in a new order, `group` of them in memory at a time, or as many as fill a batch, and shuffles
        the tokens of a group.
        Tokens that do not fill a batch at the end of a group are left out of that epoch.
        Raises: StitchError when there are fewer than `size` kept tokens.
        """
        if self.tokens < size:
            raise StitchError(
                f"tokens must fill a batch of {size}; the text has {self.tokens}: give more text or raise `tokens`."
            )
        done = 0
        for shards, shuffled in self._groups(seed, group, size):
            full = len(shuffled) // size
            if done + full > start:
                parts = [self.shard(index) for index in shards]
                x, y = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
                for number in range(max(0, start - done), full):
                    chosen = shuffled[number * size : (number + 1) * size]
                    yield x[chosen], y[chosen]
            done += full

    def _groups(self, seed: int, size: int, least: int) -> Iterator[tuple[list[int], Int[Tensor, " tokens"]]]:
        """Endless groups of `size` shards, or more where these keep fewer than `least` tokens; and the order in which to take the
        kept tokens of each group."""
        kept = [int(self.keep[self.a.rows(index)].sum()) for index in range(self.a.shards)]
        for epoch in itertools.count():
            generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
            order = torch.randperm(self.a.shards, generator=generator).tolist()
            while order:
                shards = [order.pop(0)]
                while order and (len(shards) < size or sum(kept[index] for index in shards) < least):
                    shards.append(order.pop(0))
                yield shards, torch.randperm(sum(kept[index] for index in shards), generator=generator)


def _ago(sequence: Tensor, back: int, absent: int) -> Tensor:
    """[windows, context, …] shifted `back` tokens later, with `absent` in the gap; always a copy."""
    moved = torch.full_like(sequence, absent)
    moved[:, back:] = sequence[:, : sequence.shape[1] - back]
    return moved


def without_sinks(activations: Activations, sites: Iterable[int]) -> Bool[Tensor, "windows context"]:
    """Marks the tokens to fit on: all but BOS at position 0, attention sinks at one of `sites`, and tokens that end inside
    a token of the model's own tokenizer.

    The norm of a sink reaches 10⁵ times the median, so that a few would dominate every least-squares fit. A token is a sink if
    its norm exceeds `SINK_RATIO` times the median norm of the first shard. BOS at position 0 has no context: its state is a
    constant and needs no fit.
    """
    shape, exact = activations.windows.ids.shape, activations.exact
    keep = torch.ones(shape, dtype=torch.bool) if exact is None else exact.clone()
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
    """Joins activations of the same windows and marks the tokens to fit on: those that are sinks in neither model."""
    return Paired(a, b, site_a, site_b, without_sinks(a, [site_a]) & without_sinks(b, [site_b]))
