"""A circuit as one writes it down by hand: named channels, heads that select, neurons that decide. No norms, no architecture.

The stream is what `embedding` gives a token, plus what heads copy and neurons write. All streams that are read at one stage are
equally long by design: norms then are one known factor, which `build` folds into the weights.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

Channels = Int64[Tensor, " channels"]
OFF_MASS = 1e-9  # of a head's attention, at most, beside the token that it is for


@dataclass(frozen=True)
class Select:
    """A head by position alone: the query at i attends to `target[i]`. It copies channels `source` to channels `into`."""

    target: Int64[Tensor, " length"]
    source: Int64[Tensor, " copied"]
    into: Int64[Tensor, " copied"]

    @property
    def offset(self) -> int | None:
        """How many tokens back, where that is all the targets say: the first token where there are not as many."""
        length = len(self.target)
        offset = length - 1 - int(self.target[-1])
        return offset if torch.equal(self.target, back(offset, length)) else None


@dataclass(frozen=True)
class LookUp:
    """A head by content: scores are products of query and key. See `sharp` for those that are to select."""

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
    """`tokens[0]` begins every prompt. Of the `specimens`, positions `asked` have an answer: `unembedding` gives it 1, others
    `crosstalk` at most."""

    tokens: tuple[str, ...]
    embedding: Float[Tensor, "vocabulary d"]
    blocks: tuple[Block, ...]
    unembedding: Float[Tensor, "d vocabulary"]
    length: int
    specimens: Int64[Tensor, "prompts positions"]
    asked: Bool[Tensor, "prompts positions"]
    positions: Float[Tensor, "length d"] | None = None  # added to the embedding of the token that is there
    crosstalk: float = 0.0


def sharp(gap: float, length: int) -> float:
    """What scores must be multiplied by so that the best, `gap` above all others, leaves `OFF_MASS` of the attention to them."""
    return math.log(length / OFF_MASS) / gap


def back(offset: int, length: int) -> Int64[Tensor, " length"]:
    """Targets `offset` tokens back, the first token where there are not as many."""
    return (torch.arange(length) - offset).clamp_min(0)


def signs(numbers: Int64[Tensor, " n"], bits: int) -> Float[Tensor, "n bits"]:
    """Binary codes: ±1 for every bit, the lowest first. Two that differ agree in two less, at least, than a code with itself."""
    return 1.0 - 2.0 * ((numbers[:, None] >> torch.arange(bits)) & 1).double()


def allot(**sizes: int) -> dict[str, Int64[Tensor, " size"]]:
    """Channels one after another, by name."""
    starts = torch.tensor([0, *sizes.values()]).cumsum(0).tolist()
    return {name: torch.arange(start, start + size) for (name, size), start in zip(sizes.items(), starts, strict=False)}


def one_hots(channels: Channels, width: int) -> Float[Tensor, "channels d"]:
    """Row n is 1 in channel n of these."""
    return torch.eye(width, dtype=torch.float64)[channels]


def together(*parts: Neurons) -> Neurons:
    return Neurons(
        torch.cat([part.read for part in parts], 1),
        torch.cat([part.threshold for part in parts]),
        torch.cat([part.write for part in parts]),
    )


def all_of(
    reads: Float[Tensor, "conditions neurons d"], write: Float[Tensor, "neurons d"], highest_miss: float | None = None
) -> Neurons:
    """Neurons that are 1 when all their conditions hold, and 0 otherwise. A condition is 1 when it holds, at most 0 otherwise.

    `highest_miss` is the most that the conditions of a neuron add up to without all holding: all but one, where they are exact.
    """
    conditions = len(reads)
    miss = conditions - 1.0 if highest_miss is None else highest_miss
    # Half way between, and so steep that the sum of all is 1 above it: f(conditions) = 1, f(miss) = −1 before the ReLU.
    steep = 2 / (conditions - miss)
    threshold = torch.full((reads.shape[1],), steep * (conditions + miss) / 2, dtype=torch.float64)
    return Neurons(steep * reads.sum(0).T, threshold, write)
