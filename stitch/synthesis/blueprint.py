"""A circuit written down by hand: named channels, attention heads and neurons, without norms and without an architecture.

The residual stream is the embedding of a token plus what heads copy and neurons write. By design, all streams that one stage
reads have the same norm. Each norm of a model is then a known constant factor, which `build` folds into the weights.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

Channels = Int64[Tensor, " channels"]
OFF_MASS = 1e-9  # largest share of a head's attention on tokens other than its target


@dataclass(frozen=True)
class Select:
    """A head that attends by position alone: the query at i attends to `target[i]`. It copies channels `source` to `into`."""

    target: Int64[Tensor, " length"]
    source: Int64[Tensor, " copied"]
    into: Int64[Tensor, " copied"]

    @property
    def offset(self) -> int | None:
        """How many tokens back all targets are (the first token where there are fewer); None if that varies."""
        length = len(self.target)
        offset = length - 1 - int(self.target[-1])
        return offset if torch.equal(self.target, back(offset, length)) else None


@dataclass(frozen=True)
class LookUp:
    """A head that attends by content: scores are products of query and key. `sharp` scales them for a hard selection."""

    query: Float[Tensor, "d rank"]
    query_bias: Float[Tensor, " rank"]
    key: Float[Tensor, "d rank"]
    source: Int64[Tensor, " copied"]
    into: Int64[Tensor, " copied"]


@dataclass(frozen=True)
class Neurons:
    """Adds relu(stream @ read − threshold) @ write to the stream."""

    read: Float[Tensor, "d neurons"]
    threshold: Float[Tensor, " neurons"]
    write: Float[Tensor, "neurons d"]


@dataclass(frozen=True)
class Block:
    heads: tuple[Select | LookUp, ...]
    neurons: Neurons | None = None


@dataclass(frozen=True)
class Blueprint:
    """A circuit with examples of its prompts.

    tokens       the vocabulary; `tokens[0]` begins every prompt.
    length       the context, in tokens.
    specimens    prompts on which norms are measured.
    asked        positions of the specimens where there is an answer: `unembedding` gives it 1, other tokens at most `crosstalk`.
    positions    added to the embedding of the token at each position; needs learned positions.
    """

    tokens: tuple[str, ...]
    embedding: Float[Tensor, "vocabulary d"]
    blocks: tuple[Block, ...]
    unembedding: Float[Tensor, "d vocabulary"]
    length: int
    specimens: Int64[Tensor, "prompts positions"]
    asked: Bool[Tensor, "prompts positions"]
    positions: Float[Tensor, "length d"] | None = None
    crosstalk: float = 0.0


def sharp(gap: float, length: int) -> float:
    """The factor on scores with which a best score that is `gap` above all others leaves `OFF_MASS` of the attention to them."""
    return math.log(length / OFF_MASS) / gap


def back(offset: int, length: int) -> Int64[Tensor, " length"]:
    """Targets `offset` tokens back, or the first token for positions before that."""
    return (torch.arange(length) - offset).clamp_min(0)


def bits_for(count: int) -> int:
    """Number of bits that distinguish the numbers below `count`; at least 1."""
    return max((count - 1).bit_length(), 1)


def signs(numbers: Int64[Tensor, " n"], bits: int) -> Float[Tensor, "n bits"]:
    """Binary codes with ±1 for every bit, the lowest first. Products of two different codes are at most `bits` − 2."""
    return 1.0 - 2.0 * ((numbers[:, None] >> torch.arange(bits)) & 1).double()


def balanced_signs(numbers: Int64[Tensor, " n"], bits: int) -> Float[Tensor, "n codes"]:
    """`signs`, followed by their negation, so that every code sums to 0."""
    code = signs(numbers, bits)
    return torch.cat([code, -code], 1)


def allot(**sizes: int) -> dict[str, Int64[Tensor, " size"]]:
    """Consecutive channels for every name."""
    starts = torch.tensor([0, *sizes.values()]).cumsum(0).tolist()
    return {name: torch.arange(start, start + size) for (name, size), start in zip(sizes.items(), starts, strict=False)}


def one_hots(channels: Channels, width: int) -> Float[Tensor, "channels d"]:
    """A matrix whose row n is 1 in channel channels[n], otherwise 0."""
    return torch.eye(width, dtype=torch.float64)[channels]


def together(*parts: Neurons) -> Neurons:
    """All neurons of the parts, as those of one block."""
    return Neurons(
        torch.cat([part.read for part in parts], 1),
        torch.cat([part.threshold for part in parts]),
        torch.cat([part.write for part in parts]),
    )


def all_of(
    reads: Float[Tensor, "conditions neurons d"], write: Float[Tensor, "neurons d"], highest_miss: float | None = None
) -> Neurons:
    """Neurons that are 1 when all their conditions hold, otherwise 0. A condition is 1 when it holds, otherwise at most 0.

    `highest_miss` is the largest sum of a neuron's conditions of which at least one does not hold; the default is that of exact
    conditions, their number minus 1.
    """
    conditions = len(reads)
    miss = conditions - 1.0 if highest_miss is None else highest_miss
    # The pre-activation is linear in the sum of conditions: 1 if all hold, and −1 at the highest miss.
    slope = 2 / (conditions - miss)
    threshold = torch.full((reads.shape[1],), slope * (conditions + miss) / 2, dtype=torch.float64)
    return Neurons(slope * reads.sum(0).T, threshold, write)
