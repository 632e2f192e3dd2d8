"""The text around a token: its place in the windows, and the words of single tokens."""

from typing import Any

import numpy as np

from stitch.activations.paired import Paired

BEFORE, AFTER = 20, 8  # tokens shown before and after the one a feature fires on


class Texts:
    """Text around the kept tokens of `paired`, which codes number from 0."""

    def __init__(self, paired: Paired, tokenizer: Any):
        keep = paired.keep.flatten().numpy()
        self._ids, self._tokenizer = paired.a.windows.ids, tokenizer
        self._places = np.flatnonzero(keep)  # kept token → index in the flattened windows
        self._kept = np.where(keep, np.cumsum(keep) - 1, -1)  # the other way, −1 for tokens that are not kept

    @property
    def tokens(self) -> int:
        """The number of kept tokens."""
        return len(self._places)

    def around(self, token: int) -> str:
        """The text around a kept token, which stands between « and »."""
        ids, at = self.ids(token)
        decode = self._tokenizer.decode
        return decode(ids[:at]) + "«" + decode([ids[at]]) + "»" + decode(ids[at + 1 :])

    def ids(self, token: int) -> tuple[list[int], int]:
        """Ids around a kept token, without those of other windows and BOS, and the place of the token among them."""
        window, position = divmod(int(self._places[token]), self._ids.shape[1])
        span = self._span(position)
        return self._ids[window, span].tolist(), position - span.start

    def kept(self, token: int) -> list[int]:
        """The number of each of the same tokens among the kept ones; −1 for one that is not kept and has no codes."""
        window, position = divmod(int(self._places[token]), self._ids.shape[1])
        start = window * self._ids.shape[1]
        span = self._span(position)
        return self._kept[start + span.start : start + span.stop].tolist()

    def _span(self, position: int) -> slice:
        return slice(max(1, position - BEFORE), min(position + 1 + AFTER, self._ids.shape[1]))


class Pieces:
    """The text of single tokens, numbered in the order in which they are asked for."""

    def __init__(self, tokenizer: Any):
        self._decode = tokenizer.decode
        # Some tokenizers drop the space before the first token of a text, so that no piece may be the first.
        self._first = tokenizer.encode("a", add_special_tokens=False)
        self._numbers: dict[int, int] = {}
        self.found: list[str] = []

    def number(self, id: int) -> int:
        """The number of a token's text in `found`."""
        if id not in self._numbers:
            self._numbers[id] = len(self.found)
            before = self._decode(self._first)
            self.found.append(self._decode([*self._first, id])[len(before) :])
        return self._numbers[id]
