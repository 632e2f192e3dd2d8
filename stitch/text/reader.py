"""A tokenizer with its vocabulary: how it reads a text, and how it spells bytes."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stitch.text.alignment import Aligned, align
from stitch.text.tokenizers import bos_of
from stitch.text.vocabulary import Vocabulary, vocabulary_of


@dataclass(frozen=True)
class Reader:
    """The tokenizer of the model called `name`. `bos` is the id that starts a text.

    Tokens from `rows` on have no row in the model's embedding, and are not used to spell or to correspond.
    """

    name: str
    tokenizer: Any
    vocabulary: Vocabulary
    bos: int
    rows: int

    @classmethod
    def of(cls, name: str, tokenizer: Any, rows: int | None = None) -> "Reader":
        """With None for `rows`: all tokens have one. Raises: UsageError for a tokenizer without a token to start a text with."""
        vocabulary = vocabulary_of(tokenizer)
        return cls(name, tokenizer, vocabulary, bos_of(tokenizer), len(vocabulary) if rows is None else rows)

    def read(self, text: str) -> Aligned:
        return align(text, self.tokenizer, self.vocabulary)

    @cached_property
    def lengths(self) -> Float[Tensor, " vocabulary"]:
        """Bytes of text that each token stands for; 0 for special ones."""
        return torch.tensor([len(piece or b"") for piece in self.vocabulary.pieces], dtype=torch.float64)

    @cached_property
    def adds_space(self) -> bool:
        """Whether the tokenizer puts a space in front of a text."""
        ids = self._ids(["a"])[0]
        return b"".join(self.vocabulary.pieces[token] or b"" for token in ids) == b" a"

    @cached_property
    def by_bytes(self) -> dict[bytes, int]:
        """The token that stands for some bytes: of several the last that is not kept for unknown characters.

        Many vocabularies have a token for every byte, also for one that has an ordinary token, as `<0x0A>` beside a new line.
        Text is never read as the first, so a model has not learnt what it means.
        """
        tokens: dict[bytes, list[int]] = {}
        for index, piece in enumerate(self.vocabulary.pieces[: self.rows]):
            if piece:
                tokens.setdefault(piece, []).append(index)
        spare = self.vocabulary.spare
        return {piece: max(several, key=lambda index: (index not in spare, index)) for piece, several in tokens.items()}

    @cached_property
    def most_bytes(self) -> int:
        """The length of the longest of these."""
        return max(map(len, self.by_bytes), default=0)

    def spell(self, strings: Sequence[bytes]) -> list[tuple[int, ...]]:
        """The tokens that each string consists of, as the tokenizer makes them; empty where it can not.

        Bytes that are no text, and those that the tokenizer puts something in front of, are spelt by the longest token that fits,
        again and again.
        """
        found: list[tuple[int, ...]] = [()] * len(strings)
        texts = {place: text for place, string in enumerate(strings) if (text := _text(string))}
        # A tokenizer that puts a space in front of every text is given the text without one.
        for tried in (texts, {place: text[1:] for place, text in texts.items() if text.startswith(" ")}):
            missing = [place for place in tried if not found[place] and tried[place]]
            for place, ids in zip(missing, self._ids([tried[place] for place in missing]), strict=True):
                spelt = b"".join(self.vocabulary.pieces[token] or b"" for token in ids)
                if spelt == strings[place] and max(ids) < self.rows:
                    found[place] = tuple(ids)
        return [tokens or self.longest(string) for tokens, string in zip(found, strings, strict=True)]

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []

    def longest(self, string: bytes) -> tuple[int, ...]:
        """The longest token that the bytes begin with, then that of the rest, and so on; none where some bytes have no token."""
        found = []
        while string:
            size = next(
                (size for size in range(min(self.most_bytes, len(string)), 0, -1) if string[:size] in self.by_bytes), 0
            )
            if not size:
                return ()
            found.append(self.by_bytes[string[:size]])
            string = string[size:]
        return tuple(found)


def _text(string: bytes) -> str:
    """The text that these bytes are; empty where they are none."""
    try:
        return string.decode()
    except UnicodeDecodeError:
        return ""
