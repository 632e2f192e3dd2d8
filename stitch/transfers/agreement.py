"""Whether two dictionaries' features fire on the same text: the tokens of their highest codes compared."""

from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sae.types import Dictionary

TOP = 10  # tokens of highest codes compared


def top_tokens(
    dictionary: Dictionary, streams: Iterable[Float[Tensor, "_ d"]]
) -> tuple[Int64[Tensor, "features top"], Bool[Tensor, " features"]]:
    """The tokens, by number in the stream, on which each feature's codes are highest, and which features fire on TOP or more."""
    features = len(dictionary.encoder_bias)
    values = torch.zeros(0, features)
    tokens = torch.zeros(0, features, dtype=torch.long)
    seen = 0
    for x in streams:
        codes = dictionary.encode(x.to(dictionary.encoder.device)).float().cpu()
        values = torch.cat([values, codes])
        tokens = torch.cat([tokens, (torch.arange(len(codes)) + seen)[:, None].expand(-1, features)])
        best = values.topk(min(TOP, len(values)), dim=0)
        values, tokens = best.values, tokens.gather(0, best.indices)
        seen += len(codes)
    return tokens.T.contiguous(), (values > 0).all(0) & (len(values) == TOP)


def agreement(
    ours: tuple[Int64[Tensor, "features top"], Bool[Tensor, " features"]],
    theirs: tuple[Int64[Tensor, "features top"], Bool[Tensor, " features"]],
    partners: Int64[Tensor, " features"] | None = None,
) -> float:
    """The share of features, among ours that fire, half of whose top tokens are also top tokens of theirs.

    `partners[i]` is their feature for our feature i, −1 where there is none; None: the same number.
    """
    tokens, fires = ours
    other, they_fire = theirs
    places = torch.arange(len(tokens)) if partners is None else partners
    common = (tokens[:, :, None] == other[places.clamp_min(0)][:, None, :]).any(2).sum(1)
    same = (2 * common >= TOP) & they_fire[places.clamp_min(0)] & (places >= 0)
    return float((same & fires).sum() / fires.sum().clamp_min(1))
