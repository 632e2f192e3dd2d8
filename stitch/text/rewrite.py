"""The ids of one tokenizer rewritten as those of another that stand for the same bytes."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stitch.text.alignment import Aligned, beside
from stitch.text.correspondence import by_role
from stitch.text.reader import Reader

REMEMBERED = 16_384  # windows


@dataclass(frozen=True)
class Rewritten:
    """Some ids as another tokenizer writes them.

    `ids` are its tokens. `at[t]` is the place in them of the last token that ends with token t or before it, −1 where there is
    none; `coincides[t]` says whether it ends at the same byte. A special token is beside the one of the same role. `is_text`
    marks those of `ids` that stand for bytes.
    """

    ids: Int[Tensor, " own"]
    at: Int[Tensor, " tokens"]
    coincides: Bool[Tensor, " tokens"]
    is_text: Bool[Tensor, " own"]

    @property
    def since(self) -> Int[Tensor, " own"]:
        """For each of `ids`, the first of the given tokens by whose end it has ended."""
        return torch.searchsorted(self.at, torch.arange(len(self.ids)))


@dataclass(frozen=True)
class Rewriter:
    """Rewrites ids of the tokenizer `given` as ids of `own`. What was rewritten is remembered, up to REMEMBERED windows."""

    given: Reader
    own: Reader
    _memory: dict[bytes, Rewritten] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def special(self) -> dict[int, int]:
        """The own token for each special one that has the same role or spelling."""
        return by_role(self.own, self.given)

    @property
    def lengths(self) -> Float[Tensor, " vocabulary"]:
        """Bytes of text that each given token stands for; 0 for special ones."""
        return self.given.lengths

    def __call__(self, ids: Int[Tensor, " tokens"]) -> Rewritten:
        key = np.asarray(ids, dtype=np.int32).tobytes()
        if key not in self._memory:
            if len(self._memory) >= REMEMBERED:
                self._memory.clear()
            self._memory[key] = self._rewrite(ids.tolist())
        return self._memory[key]

    def runs(self, ids: Sequence[int]) -> list[tuple[Aligned, Aligned]]:
        """Every run of ids without a special one, and the own tokens for the same bytes."""
        special = self.given.vocabulary.special
        return [self._run(run) for run in _runs(ids, special) if run[0] not in special]

    def _run(self, run: Sequence[int]) -> tuple[Aligned, Aligned]:
        pieces = [self.given.vocabulary.pieces[token] or b"" for token in run]
        there = self._spelt(b"".join(pieces))
        ends = torch.from_numpy(np.cumsum([len(piece) for piece in pieces], dtype=np.int64))
        return Aligned(torch.tensor(run), ends, there.bytes, 0), there

    def _rewrite(self, ids: Sequence[int]) -> Rewritten:
        parts, length = [], 0
        for run in _runs(ids, self.given.vocabulary.special):
            part = self._special(run[0]) if run[0] in self.given.vocabulary.special else _beside(*self._run(run))
            parts.append(replace(part, at=part.at + length))
            length += len(part.ids)
        if not parts:
            return Rewritten(*(torch.zeros(0, dtype=kind) for kind in (torch.long, torch.long, torch.bool, torch.bool)))
        return Rewritten(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Rewritten)))

    def _special(self, token: int) -> Rewritten:
        """A special token beside its counterpart, or nothing."""
        found = [self.special[token]] if token in self.special else []
        return Rewritten(
            torch.tensor(found, dtype=torch.long), torch.tensor([len(found) - 1]), torch.tensor([bool(found)]),
            torch.zeros(len(found), dtype=torch.bool),
        )  # fmt: skip

    def _spelt(self, string: bytes) -> Aligned:
        """Own tokens for bytes whose first and last character may be cut."""
        begun = next((size for size in range(min(4, len(string))) if not _continues(string[size])), 0)
        text = string[begun:].decode(errors="ignore")
        if text.encode() != string[begun : begun + len(text.encode())]:  # bytes in the middle that are no text
            begun, text = len(string), ""
        parts = [string[:begun], text, string[begun + len(text.encode()) :]]
        found = [self._longest(parts[0]), self._read(text), self._longest(parts[2])]
        ids, ends, start = [], [], 0
        for part in found:
            ids.append(part.ids)
            ends.append(part.ends + start)
            start += part.bytes
        return Aligned(torch.cat(ids), torch.cat(ends), start, sum(part.lost for part in found))

    def _read(self, text: str) -> Aligned:
        """A tokenizer that puts a space in front of every text is given the text without its own."""
        if not (self.own.adds_space and text.startswith(" ")):
            return self.own.read(text)
        found = self.own.read(text[1:])
        return Aligned(found.ids, found.ends + 1, found.bytes + 1, found.lost)

    def _longest(self, string: bytes) -> Aligned:
        """The longest tokens that fit, again and again; none where some bytes have no token."""
        ids = self.own.longest(string)
        pieces = [len(self.own.vocabulary.pieces[token] or b"") for token in ids]
        return Aligned(
            torch.tensor(ids, dtype=torch.long), torch.from_numpy(np.cumsum(pieces, dtype=np.int64)), len(string),
            0 if ids else len(string),
        )  # fmt: skip


def _beside(given: Aligned, own: Aligned) -> Rewritten:
    lies = beside(given, own)
    return Rewritten(own.ids, lies.index, lies.coincides, torch.ones(len(own.ids), dtype=torch.bool))


def _continues(byte: int) -> bool:
    """Whether it is inside a character of UTF-8."""
    return byte & 0xC0 == 0x80


def _runs(ids: Sequence[int], special: dict[int, str]) -> list[list[int]]:
    """Ids without a special one among them, and single special ones."""
    runs: list[list[int]] = []
    for token in ids:
        if runs and token not in special and runs[-1][0] not in special:
            runs[-1].append(token)
        else:
            runs.append([token])
    return runs
