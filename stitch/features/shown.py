"""Codes of chosen features on chosen tokens, and histograms of all their codes: one pass over the codes of a model."""

import numpy as np
from jaxtyping import Float32, Float64, Int64

from stitch.features.codes import Codes

BARS = 16  # of a histogram, from 0 to the feature's highest code


class ShownCodes:
    """The codes of `features`, one after another, on the tokens of each that are asked for.

    `highest` is the highest code of each; `counts[i]` is how many tokens have a code of feature i in each of BARS equal steps up
    to that.
    """

    def __init__(
        self,
        features: Int64[np.ndarray, " shown"],
        highest: Float32[np.ndarray, " shown"],
        wanted: list[list[int]],
        total: int,
    ):
        """`wanted[i]` are tokens that the code of feature i is wanted on, of `total` tokens; −1 for one that has none."""
        self._lookup = np.full(int(features.max(initial=0)) + 1, -1)  # feature → its row, −1 where it is not shown
        self._lookup[features] = np.arange(len(features))
        self._total = total
        keys = [row * total + token for row, tokens in enumerate(wanted) for token in tokens if token >= 0]
        self._keys = np.unique(np.array(keys, dtype=np.int64))
        self._codes: Float32[np.ndarray, " keys"] = np.zeros(len(self._keys), np.float32)
        self._highest: Float64[np.ndarray, " shown"] = np.maximum(highest.astype(np.float64), 1e-30)
        self.counts: Int64[np.ndarray, "shown bars"] = np.zeros((len(features), BARS), np.int64)

    def read(self, codes: Codes, seen: int) -> None:
        """Adds some tokens' codes; the first of them is token `seen`."""
        entries = codes.tocoo()
        known = entries.col < len(self._lookup)
        rows = np.where(known, self._lookup[np.where(known, entries.col, 0)], -1)
        mine = rows >= 0
        rows, values, tokens = rows[mine], entries.data[mine], entries.row[mine].astype(np.int64) + seen
        bars = np.minimum((BARS * values / self._highest[rows]).astype(np.int64), BARS - 1)
        size = len(self.counts) * BARS
        self.counts += np.bincount(rows * BARS + bars, minlength=size).reshape(self.counts.shape)
        keys = rows * self._total + tokens
        places = np.searchsorted(self._keys, keys)
        places[places == len(self._keys)] = 0
        if len(self._keys):
            found = self._keys[places] == keys
            self._codes[places[found]] = values[found]

    def on(self, row: int, tokens: list[int]) -> list[list]:
        """[place, code] for those of `tokens` on which feature number `row` fires; they must have been asked for."""
        keys = [row * self._total + token for token in tokens]
        places = np.searchsorted(self._keys, keys)
        return [
            [number, round(float(self._codes[place]), 3)]
            for number, (token, place) in enumerate(zip(tokens, places, strict=True))
            if token >= 0 and self._codes[place] > 0
        ]
