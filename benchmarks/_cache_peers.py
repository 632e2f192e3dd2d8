"""Cache policies of other work, rebuilt from their papers' formulas: which keys a head still has when it reads a long text.

    Streaming       the first keys and the last ones: StreamingLLM (Xiao et al. 2023, arXiv:2309.17453). With windows by head,
                    a few of which take the whole context, these are the keys of DuoAttention (Xiao et al. 2024,
                    arXiv:2410.10819).
    HeavyHitters    H2O (Zhang et al. 2023, arXiv:2306.14048): some of the cache are the last keys, the others those with the
                    most attention so far, summed over all queries. The paper gives half to each.
    Snapshots       SnapKV (Li et al. 2024, arXiv:2404.14469): the keys with the most attention of the `last` queries, smoothed
                    over neighbours. The paper chooses once, after the prompt; here every `step` tokens, as the text goes on.
                    With `shared`, Ada-KV (Feng et al. 2024, arXiv:2407.11550): the best of all heads of a block together, but
                    at least a fifth of its share for each head.
Kept keys stand at positions within the cache, as in StreamingLLM: those that are not among the last follow each other from 0 on.
With `own_positions` they stand where they were read. Learned positions are part of the keys and stay. Every policy computes what
a cache of that size would compute, token by token; storage is not simulated. Scores of keys are not counted as bytes.

`_cache_settings.py` chooses their settings.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from stitch.conversions.recurrence.forms import memories
from stitch.modeling.modeling_recurrent import RecurrentForCausalLM, attentions, group_matmul, shape_of

PIECE = 64  # queries that Streaming computes at once
NEIGHBOURS = 5  # of the average that smooths SnapKV's votes
LEAST_SHARE = 0.2  # of Ada-KV


class CachePeer(nn.Module, ABC):
    """The stock model of `net` with a cache policy. It is called like a causal language model."""

    def __init__(self, net: RecurrentForCausalLM, own_positions: bool):
        super().__init__()
        self.net, self.memories, self.own_positions = net, net.memories, own_positions
        self.rotary = next((one.inv_freq for one in net.base.modules() if hasattr(one, "inv_freq")), None)

    @torch.no_grad()
    def forward(self, input_ids: Tensor, use_cache: bool = False, **kwargs):
        return self.net.base(input_ids=input_ids, use_cache=False, recurrent=self, **kwargs)

    def attend(self, module: Any, q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
        q = q.unflatten(1, (k.shape[1], -1)) * scaling
        return self.outputs(q, k, v, module.memory_index).flatten(1, 2)

    @abstractmethod
    def outputs(self, q: Tensor, k: Tensor, v: Tensor, block: int) -> Tensor:
        """q [batch, groups, shared, tokens, width], scaled; k and v [batch, groups, tokens, width] → as q."""

    @abstractmethod
    def held(self) -> list[int]:
        """By block, the most keys that all its heads hold together."""

    def state_bytes(self) -> int:
        """The most bytes of keys and values."""
        shapes = [shape_of(module.config) for module in attentions(self.net.base)]
        keys = zip(shapes, self.held(), strict=True)
        return sum(2 * shape.width * held for shape, held in keys) * self.net.base.dtype.itemsize

    def moved(self, x: Tensor, by: Int64[Tensor, "..."]) -> Tensor:
        """Queries or keys as they would be `by` positions later. Own and learned positions stay."""
        if self.rotary is None or self.own_positions:
            return x
        angle = by[..., None] * self.rotary.to(x)
        cos, sin = torch.cat([angle.cos()] * 2, -1), torch.cat([angle.sin()] * 2, -1)
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin


class Streaming(CachePeer):
    """The first `sinks` keys and the last `windows[block][group]`."""

    def __init__(
        self, net: RecurrentForCausalLM, windows: Sequence[Sequence[int]], sinks: int, own_positions: bool = False
    ):
        super().__init__(net, own_positions)
        self.windows, self.sinks = windows, sinks

    def held(self) -> list[int]:
        return [sum(window + self.sinks for window in block) for block in self.windows]

    def outputs(self, q: Tensor, k: Tensor, v: Tensor, block: int) -> Tensor:
        tokens, found = k.shape[2], []
        window = torch.tensor(self.windows[block], device=k.device)[:, None]  # [groups, 1]
        sinks = torch.arange(min(self.sinks, tokens), device=k.device)
        for a in range(0, tokens, PIECE):
            b, start = min(a + PIECE, tokens), max(0, a + 1 - int(window.max()))
            now, near = torch.arange(a, b, device=k.device), torch.arange(start, b, device=k.device)
            ago = now[:, None] - near
            place = now.minimum(self.sinks + window - 1)  # of the query within the cache [groups, queries]
            far = group_matmul(self.moved(q[:, :, :, a:b], (place - now)[:, None]), k[:, :, : len(sinks)].mT)
            far = far.masked_fill(~(sinks <= now[:, None] - window[..., None])[:, None], -torch.inf)
            last = group_matmul(q[:, :, :, a:b], k[:, :, start:b].mT)
            last = last.masked_fill(~((ago >= 0) & (ago < window[..., None]))[:, None], -torch.inf)
            values = torch.cat([v[:, :, : len(sinks)], v[:, :, start:b]], 2)
            found.append(group_matmul(torch.cat([far, last], -1).softmax(-1), values))
        return torch.cat(found, 3)


class Chosen(CachePeer):
    """The last keys, and others chosen by votes every `step` tokens: at most `keys` of each head, on average over a block.

    Votes of the last `rounds` steps count together.
    """

    def __init__(
        self, net: RecurrentForCausalLM, keys: int, last: int, step: int, own_positions: bool, rounds: int = 1
    ):
        super().__init__(net, own_positions)
        self.keys, self.last, self.step, self.rounds = keys, last, step, rounds
        self.chosen = keys - last - step + 1  # `step` − 1 more come in before the next choice
        if self.chosen < 1 or step > last:
            raise ValueError(f"keys must be above last + step − 1 and step at most last; got {keys}, {last}, {step}.")

    def held(self) -> list[int]:
        return [self.keys * memory.shape.groups for memory in memories(self.net)]

    def outputs(self, q: Tensor, k: Tensor, v: Tensor, block: int) -> Tensor:
        batch, groups, tokens, _ = k.shape
        # Indices of the chosen keys in ascending order; `tokens` where a head has fewer.
        kept = torch.full((batch, groups, self.room(groups)), tokens, device=k.device)
        votes, found = torch.zeros(self.rounds, batch, groups, tokens + 1, device=k.device), []
        for a in range(0, tokens, self.step):
            b, start = min(a + self.step, tokens), max(0, a + 1 - self.last)
            now, near = torch.arange(a, b, device=k.device), torch.arange(start, b, device=k.device)
            there, index = kept < tokens, kept.clamp_max(tokens - 1)
            # Of the queries within the cache [batch, groups, queries].
            place = there.sum(-1, keepdim=True) + now - start
            chosen = self.moved(gathered(k, index), torch.arange(kept.shape[-1], device=k.device) - index)
            far = group_matmul(self.moved(q[:, :, :, a:b], (place - now)[:, :, None]), chosen.mT)
            far = far.masked_fill(~there[:, :, None, None], -torch.inf)
            last = group_matmul(q[:, :, :, a:b], k[:, :, start:b].mT).masked_fill(near > now[:, None], -torch.inf)
            weights = torch.cat([far, last], -1).softmax(-1)
            found.append(group_matmul(weights, torch.cat([gathered(v, index), v[:, :, start:b]], 2)))
            seen = torch.cat([kept, near.expand(batch, groups, -1)], -1)
            self.vote(votes[a // self.step % self.rounds], seen, weights.mean(2))
            leaving = near[: max(0, b + 1 - self.last) - start]
            if len(leaving):
                candidates = torch.cat([kept, leaving.expand(batch, groups, -1)], -1).sort(-1).values
                counted = votes.gather(-1, candidates.expand(self.rounds, -1, -1, -1)).sum(0)
                wanted = self.best(self.smoothed(counted), candidates < tokens)
                kept = candidates.masked_fill(~wanted, tokens).sort(-1).values[..., : kept.shape[-1]]
        return torch.cat(found, 3)

    def room(self, groups: int) -> int:
        """The most keys that one head may have chosen."""
        return self.chosen

    @abstractmethod
    def vote(self, votes: Tensor, seen: Tensor, weights: Float[Tensor, "batch groups queries keys"]) -> None:
        """Changes votes by index of the key [batch, groups, tokens + 1] for queries that gave `weights` to the keys `seen`."""

    def smoothed(self, votes: Float[Tensor, "batch groups keys"]) -> Float[Tensor, "batch groups keys"]:
        return votes

    def best(self, votes: Float[Tensor, "batch groups keys"], there: Bool[Tensor, "batch groups keys"]) -> Tensor:
        """Which keys are kept."""
        return largest(votes.masked_fill(~there, -torch.inf), self.chosen) & there


class HeavyHitters(Chosen):
    """`recent` is the share of the last keys."""

    def __init__(self, net: RecurrentForCausalLM, keys: int, recent: float = 0.5, own_positions: bool = False):
        super().__init__(net, keys, last=keys - int((1 - recent) * keys), step=1, own_positions=own_positions)

    def vote(self, votes: Tensor, seen: Tensor, weights: Tensor) -> None:
        votes.scatter_add_(-1, seen, weights.sum(2))


class Snapshots(Chosen):
    """The `last` queries vote, and their own keys are kept with them."""

    def __init__(
        self,
        net: RecurrentForCausalLM,
        keys: int,
        last: int,
        step: int,
        shared: bool = False,
        neighbours: int = NEIGHBOURS,
        own_positions: bool = False,
    ):
        if last % step:
            raise ValueError(f"last must be a multiple of step; got {last} and {step}.")
        super().__init__(net, keys, last + 1, step, own_positions, rounds=last // step)
        self.shared, self.neighbours = shared, neighbours

    def room(self, groups: int) -> int:
        return self.chosen * groups if self.shared else self.chosen

    def vote(self, votes: Tensor, seen: Tensor, weights: Tensor) -> None:
        votes.scatter_(-1, seen, weights.sum(2))  # a key that can be chosen is seen in every step from its first on

    def smoothed(self, votes: Tensor) -> Tensor:
        return nn.functional.avg_pool1d(votes, self.neighbours, stride=1, padding=self.neighbours // 2)

    def best(self, votes: Tensor, there: Tensor) -> Tensor:
        if not self.shared:
            return super().best(votes, there)
        votes = votes.masked_fill(~there, -torch.inf)
        certain = largest(votes, max(1, int(LEAST_SHARE * self.chosen))) & there
        everyone = votes.masked_fill(certain, torch.inf).flatten(1)
        return largest(everyone, self.chosen * votes.shape[1]).view_as(votes) & there


def largest(values: Float[Tensor, "... n"], count: int) -> Bool[Tensor, "... n"]:
    """Which values are among the `count` largest."""
    places = values.topk(min(count, values.shape[-1]), -1).indices
    return torch.zeros_like(values, dtype=torch.bool).scatter(-1, places, True)


def gathered(x: Float[Tensor, "batch groups tokens width"], index: Int64[Tensor, "batch groups n"]) -> Tensor:
    return x.gather(2, index[..., None].expand(-1, -1, -1, x.shape[-1]))


def keys_of_bytes(net: RecurrentForCausalLM, size: int) -> int:
    """How many keys and values of every head `size` bytes hold, rounded down."""
    shapes = [shape_of(module.config) for module in attentions(net.base)]
    return size // sum(2 * shape.groups * shape.width * net.base.dtype.itemsize for shape in shapes)
