"""Induction: a sequence of random tokens stands twice in a prompt."""

from collections import Counter
from dataclasses import replace

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from stitch.circuits.behaviours.prompts import Prompts, following
from stitch.circuits.behaviours.sampler import LONGEST, TokenSampler
from stitch.errors import UsageError

POOL = 128  # iid sequences: how many different tokens they are drawn from
REPEATED = 8, 24  # the least and the largest length of a repeated sequence
NEAREST, FARTHEST = 8, 200  # how far before its second occurrence a sequence stands first, in tokens


def induction(sampler: TokenSampler) -> Prompts:
    """A sequence of different tokens stands twice in a prompt. At its second occurrence all tokens but the first are asked for.

    Corrupt: the first occurrence is another sequence. No other token stands twice.
    """
    length, longest = _room(sampler, len(sampler.ordinary))
    drawn, other = sampler.distinct_by_half(length + longest).split([length, longest], 1)
    return _repeated(sampler, drawn, other)


def iid_induction(sampler: TokenSampler) -> Prompts:
    """As `induction`, with tokens drawn independently from a small pool, so that most tokens have had several successors.

    A head that attends to earlier occurrences of the current token finds all of them; `order_one` is what that can reach.
    """
    length, longest = _room(sampler)
    pool = sampler.distinct_by_half(POOL)
    drawn, other = (
        pool.gather(1, torch.randint(POOL, (sampler.count, width), generator=sampler.generator))
        for width in (length, longest)
    )
    found = _repeated(sampler, drawn, other)
    return replace(found, order_one=_order_one(found.clean, found.asked))


def _room(sampler: TokenSampler, vocabulary: int | None = None) -> tuple[int, int]:
    """(tokens after BOS, longest repeated sequence) of prompts as long as the context and the `vocabulary` allow.

    Raises: UsageError when a sequence that stands twice does not fit.
    """
    shortest, longest = REPEATED
    length = min(sampler.longest, LONGEST) - 1
    if vocabulary is not None:
        length = min(length, max(vocabulary - longest, 3 * vocabulary // 4))
    if length < 3 * shortest:
        raise UsageError(
            f"this behaviour needs a context and a vocabulary of at least {3 * shortest + 1} and {4 * shortest} tokens; "
            f"the model has {sampler.longest} and {len(sampler.ordinary)}: choose another."
        )
    return length, min(longest, length // 3)


def _repeated(
    sampler: TokenSampler, drawn: Int64[Tensor, "prompts length"], other: Int64[Tensor, "prompts longest"]
) -> Prompts:
    """Prompts of the tokens `drawn`, in which a sequence also replaces those that come some distance after it.

    Distances are spread evenly on a logarithmic scale from NEAREST to FARTHEST, or to what fits. Lengths and places are random.
    Corrupt: the sequence's first occurrence is `other` tokens.
    """
    count, length, longest = sampler.count, drawn.shape[1], other.shape[1]
    farthest = min(FARTHEST, length - longest)

    def up_to(most: Int64[Tensor, " prompts"]) -> Int64[Tensor, " prompts"]:
        """A number from 0 to `most` for every prompt."""
        return (torch.rand(count, generator=sampler.generator) * (most + 1)).long()

    share = (torch.randperm(count, generator=sampler.generator) + 0.5) / count
    distance = (NEAREST * (farthest / NEAREST) ** share).round().long()
    size = REPEATED[0] + up_to(distance.clamp_max(longest) - REPEATED[0])
    start = up_to(length - distance - size)
    place = torch.arange(length) - start[:, None]  # in the sequence's first occurrence
    back = place - distance[:, None]
    is_first, is_second = ((each >= 0) & (each < size[:, None]) for each in (place, back))
    column = torch.arange(length)
    clean = drawn.gather(1, torch.where(is_second, column - distance[:, None], column))
    corrupt = torch.where(is_first, other.gather(1, place.clamp(0, longest - 1)), clean)
    asked = torch.nn.functional.pad(is_second & (back < size[:, None] - 1), (1, 0))
    found = following(sampler.starting_with_bos(clean), sampler.starting_with_bos(corrupt), asked)
    return replace(found, distance=distance)


def _order_one(ids: Int64[Tensor, "prompts length"], asked: Bool[Tensor, "prompts length"]) -> float:
    """The share of the tokens asked for that followed the current token most often until then; ties count as 1 / their number."""
    right = []
    for row, where in zip(ids.tolist(), asked, strict=True):
        for place in where.nonzero()[:, 0].tolist():
            counts = Counter(row[i + 1] for i in range(place) if row[i] == row[place])
            best = [token for token, count in counts.items() if count == max(counts.values())]
            right.append((row[place + 1] in best) / len(best))
    return sum(right) / len(right)
