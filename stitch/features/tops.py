"""The tokens that features fire on most strongly."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

from matching.stream import Codes

TOPS = 6  # per feature


@dataclass(frozen=True)
class Tops:
    """The highest codes of each feature (0 where there are fewer), and the index of the kept token of each code."""

    values: Float32[np.ndarray, "features n"]
    tokens: Int64[np.ndarray, "features n"]

    def tokens_of(self, feature: int, most: int) -> list[int]:
        """Kept tokens of the highest codes above 0, at most `most`, the highest first."""
        return [int(token) for token in self.tokens[feature, :most][self.values[feature, :most] > 0]]


def highest(codes: Iterable[tuple[Codes, Codes]]) -> tuple[Tops, Tops]:
    """The highest codes of A's features and of B's, in one pass. There is at least one chunk of codes."""
    tops: list[Tops | None] = [None, None]
    seen = 0
    for chunk in codes:
        for side, found in enumerate(chunk):
            tops[side] = merged(tops[side], found, seen)
        seen += chunk[0].shape[0]  # pyright: ignore[reportOptionalSubscript]
    a, b = tops
    assert a is not None and b is not None, "there are no codes"
    return a, b


def merged(known: Tops | None, codes: Codes, seen: int, most: int = TOPS) -> Tops:
    """The `most` highest codes among `known` and `codes`, whose first token has index `seen`. Earlier tokens win ties."""
    count = codes.shape[1]  # pyright: ignore[reportOptionalSubscript]
    if known is None:
        known = Tops(np.zeros((count, most), np.float32), np.zeros((count, most), np.int64))
    entries = codes.tocoo()
    higher = entries.data > known.values[entries.col, -1]  # after the first chunks, few codes are
    features = np.concatenate([np.repeat(np.arange(count), most), entries.col[higher]])
    values = np.concatenate([known.values.ravel(), entries.data[higher]])
    tokens = np.concatenate([known.tokens.ravel(), entries.row[higher] + seen])
    order = np.lexsort((tokens, -values, features))
    features = features[order]
    rank = np.arange(len(features)) - np.searchsorted(features, features)
    kept = order[rank < most]
    shape = (count, most)
    return Tops(values[kept].reshape(shape).astype(np.float32), tokens[kept].reshape(shape).astype(np.int64))
