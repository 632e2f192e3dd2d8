"""What a head computes when it knows only its strongest keys: the others averaged, exchanged, or left out."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stitch.internals.attention import Attended

Pattern = Float[Tensor, "windows heads t t"]
Keys = Bool[Tensor, "windows heads t t"]


def strongest(seen: Attended, count: int) -> Keys:
    """The `count` keys of each query with the highest probability; all that it sees where there are no more."""
    return chosen(seen.pattern, seen.visible, count)


def at_random(seen: Attended, count: int, generator: torch.Generator) -> Keys:
    """`count` keys of each query, drawn from all that it sees: the null of `strongest`."""
    drawn = torch.rand(seen.pattern.shape, generator=generator).to(seen.pattern.device)
    return chosen(drawn, seen.visible, count)


def chosen(rank: Pattern, visible: Keys, count: int) -> Keys:
    """The `count` visible keys of each query with the highest `rank`."""
    count = min(count, rank.shape[-1])
    found = rank.masked_fill(~visible, -torch.inf).topk(count, -1).indices
    return torch.zeros_like(visible).scatter(-1, found, True) & visible


def equalised(seen: Attended, kept: Keys) -> Pattern:
    """The pattern in which all keys that are not `kept` have the same probability, in total what they had."""
    rest = seen.visible & ~kept
    mean = (seen.pattern * rest).sum(-1, keepdim=True) / rest.sum(-1, keepdim=True).clamp_min(1)
    return torch.where(rest, mean, seen.pattern)


def dropped(seen: Attended, kept: Keys) -> Pattern:
    """The pattern without the keys that are not `kept`, with a sum of 1 again."""
    left = seen.pattern * kept
    return left / left.sum(-1, keepdim=True).clamp_min(torch.finfo(left.dtype).tiny)


def permuted(seen: Attended, kept: Keys, generator: torch.Generator) -> Pattern:
    """The pattern in which the keys that are not `kept` have exchanged their probabilities at random, query by query."""
    rest = seen.visible & ~kept
    drawn = torch.rand(rest.shape, generator=generator).to(rest.device)
    # Both orders have the keys of `rest` first: one as they stand, the other as drawn.
    place = torch.arange(rest.shape[-1], device=rest.device).expand_as(rest)
    standing = torch.where(rest, place, place + rest.shape[-1]).argsort(-1)
    mixed = torch.where(rest, drawn, 1 + place.float()).argsort(-1)
    return torch.empty_like(seen.pattern).scatter(-1, standing, seen.pattern.gather(-1, mixed))
