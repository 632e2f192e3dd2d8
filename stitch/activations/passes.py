"""Texts of any length in passes of a model that takes only so many tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True)
class Passes:
    """Rows of ids for a model, and which of their positions stand for which part of the texts.

    A text that is too long has further rows. Each starts with BOS, half a row before what it adds, so that every token is read
    behind at least half as many tokens as the model takes. Rows are filled up behind their end, where no token before it reads.
    `parts` has, by text, the row, the first of its positions that counts, and the one behind the last.
    """

    ids: Int[Tensor, "rows longest"]
    parts: list[list[tuple[int, int, int]]]

    @classmethod
    def of(cls, texts: Sequence[Int[Tensor, " _"]], longest: int, bos: int) -> "Passes":
        rows: list[Tensor] = []
        parts: list[list[tuple[int, int, int]]] = []
        for ids in texts:
            mine, done = [], 0
            while done < len(ids) or not mine:
                start = max(0, done - longest // 2)
                row = ids[start : start + longest].clone()
                if start:
                    row[0] = bos
                mine.append((len(rows), done - start, len(row)))
                rows.append(row)
                done = start + len(row)
            parts.append(mine)
        filled = torch.full((len(rows), max(1, *map(len, rows))), bos)
        for place, row in zip(filled, rows, strict=True):
            place[: len(row)] = row
        return cls(filled, parts)

    def joined(self, found: Tensor) -> Iterator[Tensor]:
        """What was found at every position [rows, longest, …] as [tokens, …] of one text after another."""
        for mine in self.parts:
            yield torch.cat([found[row, first:stop] for row, first, stop in mine])
