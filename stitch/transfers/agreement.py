"""Whether two dictionaries' features fire on the same text: the tokens of their highest codes compared."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, Int64
from torch import Tensor

from sae.types import Dictionary
from stitch.features.codes import sparse_codes
from stitch.features.tops import Tops, merged

TOP = 10  # tokens of highest codes compared
CHUNK = 1024  # tokens encoded at a time


def top_tokens(dictionary: Dictionary, streams: Iterable[Float[Tensor, "_ d"]]) -> Tops:
    """The TOP highest codes of each feature, with their tokens by number in the stream, which has one token or more."""
    tops, seen = None, 0
    for x in (part for chunk in streams for part in chunk.split(CHUNK)):
        tops = merged(tops, sparse_codes(dictionary, x), seen, TOP)
        seen += len(x)
    assert tops is not None, "there are no tokens"
    return tops


def agreement(ours: Tops, theirs: Tops, partners: Int64[np.ndarray, " features"] | None = None) -> float:
    """The share of features, among ours that fire on TOP tokens or more, half of whose top tokens are top tokens of theirs.

    `partners[i]` is their feature for our feature i, −1 where there is none; None: the same number.
    """
    places = np.arange(len(ours.tokens)) if partners is None else partners
    others = places.clip(min=0)
    common = (ours.tokens[:, :, None] == theirs.tokens[others][:, None, :]).any(2).sum(1)
    fires, they_fire = (tops.values[:, -1] > 0 for tops in (ours, theirs))
    same = (2 * common >= TOP) & they_fire[others] & (places >= 0)
    return float((same & fires).sum() / max(1, fires.sum()))
