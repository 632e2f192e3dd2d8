"""Attention Matching (Zweiger et al. 2026, arXiv:2602.16284), rebuilt from its formulas: a cache of fewer keys and values that
gives the same attention.

Of m keys and values t < m are kept, with a bias for every key: those with the most attention of some queries (root mean square).
The biases make the mass of the attention before the softmax what it was at these queries (non-negative least squares), and the
values what attention gives (least squares). The paper compacts a finished prompt once, with queries of the prompt read again.
Here the cache is compacted as the text goes on, whenever it is full, with the last queries; keys stay where they were read.
The paper's other choices of keys, by matching pursuit, and its sizes by head are left out: heads have the sizes that they are
given.
"""

from collections.abc import Sequence

import torch
from _cache_peers import CachePeer
from jaxtyping import Float
from torch import Tensor

from stitch.conversions.recurrence.forms import memories
from stitch.modeling.modeling_recurrent import RecurrentForCausalLM, attentions, shape_of

STEPS = 40  # of the projected gradient for the biases
LEAST = 1e-6  # weight of a key: its bias is the logarithm
Compacted = tuple[Tensor, Tensor, Tensor]  # keys, values, biases


class Matched(CachePeer):
    """At most `sizes[block][group]` keys. When they are all there, a share `recent` of them, the last, stays, and the others are
    compacted, so that `step` more have room, or a quarter of the keys. `asked` is how many of the last queries that is done for.
    """

    def __init__(
        self,
        net: RecurrentForCausalLM,
        sizes: Sequence[Sequence[int]],
        recent: float = 0.25,
        step: int = 8,
        asked: int = 32,
        strength: float = 1e-2,
    ):
        super().__init__(net, own_positions=True)
        self.sizes, self.recent, self.step, self.asked, self.strength = sizes, recent, step, asked, strength

    def held(self) -> list[int]:
        return [sum(block) for block in self.sizes]

    def state_bytes(self) -> int:
        shapes = [shape_of(module.config) for module in attentions(self.net.base)]
        keys = zip(shapes, self.held(), strict=True)
        return sum((2 * shape.width + 1) * held for shape, held in keys) * self.net.base.dtype.itemsize

    def outputs(self, q: Tensor, k: Tensor, v: Tensor, block: int) -> Tensor:
        found, sizes = torch.empty_like(q), self.sizes[block]
        for size in dict.fromkeys(sizes):
            alike = [group for group, own in enumerate(sizes) if own == size]
            parts = (x[:, alike].flatten(0, 1) for x in (q, k, v))
            found[:, alike] = self.heads(*parts, size).unflatten(0, (-1, len(alike)))
        return found

    def heads(
        self,
        q: Float[Tensor, "batch shared tokens width"],
        k: Float[Tensor, "batch tokens width"],
        v: Float[Tensor, "batch tokens width"],
        size: int,
    ) -> Float[Tensor, "batch shared tokens width"]:
        tokens, found = k.shape[1], []
        step, recent = min(self.step, max(1, size // 4)), int(self.recent * size)
        count = max(0, size - step - recent)
        keys, values, biases = k[:, :0], v[:, :0], k[:, :0, 0]
        for a in range(0, tokens, step):
            b = min(a + step, tokens)
            keys, values = torch.cat([keys, k[:, a:b]], 1), torch.cat([values, v[:, a:b]], 1)
            biases = torch.cat([biases, biases.new_zeros(len(k), b - a)], 1)
            scores = q[:, :, a:b] @ keys[:, None].mT + biases[:, None, None]
            later = torch.ones(b - a, b - a, dtype=torch.bool, device=k.device).triu(1)
            scores[..., -(b - a) :].masked_fill_(later, -torch.inf)
            found.append(scores.softmax(-1) @ values[:, None])
            if keys.shape[1] + min(step, tokens - b) > size:
                old = keys.shape[1] - recent
                asked = q[:, :, max(0, b - self.asked) : b].flatten(1, 2)
                small = compacted(asked, keys[:, :old], values[:, :old], biases[:, :old], count, self.strength)
                keys, values, biases = (
                    torch.cat([new, whole[:, old:]], 1)
                    for new, whole in zip(small, (keys, values, biases), strict=True)
                )
        return torch.cat(found, 2)


def compacted(
    q: Float[Tensor, "batch queries width"],
    k: Float[Tensor, "batch m width"],
    v: Float[Tensor, "batch m width"],
    biases: Float[Tensor, "batch m"],
    count: int,
    strength: float,
) -> Compacted:
    """`count` of the keys, with values and biases for which the queries find the same."""
    if not count:
        return k[:, :0], v[:, :0], biases[:, :0]
    scores = q @ k.mT + biases[:, None]
    mass = scores.logsumexp(-1, keepdim=True)
    weights = (scores - mass).exp()
    wanted = weights @ v
    kept = weights.square().mean(1).topk(count, -1).indices.sort(-1).values
    index = kept[..., None].expand(-1, -1, k.shape[-1])
    k, v, biases = k.gather(1, index), v.gather(1, index), biases.gather(1, kept)
    # By their share of the mass that the queries find, so that all queries count alike.
    parts = (q @ k.mT - mass).exp()
    biases = non_negative(parts, biases.exp()).clamp_min(LEAST).log()
    weights = (q @ k.mT + biases[:, None]).softmax(-1)
    gram = weights @ weights.mT
    diagonal = gram.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    gram = gram + strength * diagonal * torch.eye(gram.shape[-1], device=gram.device)
    # The smallest change of the values that gives what is wanted: there are fewer queries than keys where caches are large.
    return k, v + weights.mT @ torch.linalg.solve(gram, wanted - weights @ v), biases


def non_negative(
    parts: Float[Tensor, "batch queries keys"], start: Float[Tensor, "batch keys"]
) -> Float[Tensor, "batch keys"]:
    """Weights of the keys, none below zero, whose sum over `parts` is nearest to 1 at every query. By FISTA."""
    largest = parts.square().sum((1, 2))[:, None]  # no less than the largest eigenvalue
    weights = ahead = start
    speed = 1.0
    for _ in range(STEPS):
        error = (parts @ ahead[..., None])[..., 0] - 1
        following = (ahead - (parts.mT @ error[..., None])[..., 0] / largest).clamp_min(0)
        faster = (1 + (1 + 4 * speed**2) ** 0.5) / 2
        ahead = following + (speed - 1) / faster * (following - weights)
        weights, speed = following, faster
    return weights


def entries_of_bytes(net: RecurrentForCausalLM, size: int) -> int:
    """How many keys, values and biases of every head `size` bytes hold, rounded down."""
    itemsize = net.base.dtype.itemsize
    return size // sum((2 * one.shape.width + 1) * one.shape.groups * itemsize for one in memories(net))
