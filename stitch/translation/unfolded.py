"""Look-up tables that are kept as factors: a row is computed when it is asked for.

Many translations of one pair look up the same embeddings and states through different weights. Their tables would have
rows × width numbers each; the factors are shared.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

TOGETHER = 4096  # rows computed at a time when a table is folded

Factor = tuple[Tensor, Tensor | None]  # rows [entries, columns] and weight [columns, d_out]; None: the rows themselves


@dataclass(frozen=True, eq=False)
class Unfolded:
    """A table whose row i is Σ rows[i] @ weight over its `factors`, computed in float64 and rounded once."""

    factors: tuple[Factor, ...]

    def __len__(self) -> int:
        return len(self.factors[0][0])

    @property
    def shape(self) -> tuple[int, int]:
        rows, weight = self.factors[0]
        return len(rows), (rows if weight is None else weight).shape[1]

    def numel(self) -> int:
        """Numbers in the folded table."""
        return len(self) * self.shape[1]

    def rows(self, index: Int64[Tensor, " n"]) -> Float[Tensor, "n d_out"]:
        """The rows with these numbers, float32 on the device of `index`."""
        device = self.factors[0][0].device
        total = torch.zeros(len(index), self.shape[1], dtype=torch.float64, device=device)
        for rows, weight in self.factors:
            chosen = rows.index_select(0, index.to(rows.device)).to(total)
            total += chosen if weight is None else chosen @ weight.to(total)
        return total.float().to(index.device)

    def parts(
        self, together: int = TOGETHER, index: Int64[Tensor, " n"] | None = None
    ) -> Iterator[Float[Tensor, "_ d_out"]]:
        """All rows, or those with the numbers `index`, so many at a time."""
        for some in (torch.arange(len(self)) if index is None else index).split(together):
            yield self.rows(some)

    def folded(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, "entries d_out"]:
        """The whole table, made a few thousand rows at a time."""
        table = torch.empty(self.shape, dtype=dtype)
        for place, rows in zip(table.split(TOGETHER), self.parts(), strict=True):
            place.copy_(rows)
        return table


def unfolded(table: Tensor | Unfolded, weight: Float[Tensor, "d_out d_new"] | None = None) -> Unfolded:
    """`table`, or its product with `weight`, without computing either."""
    found = factors_of(table)
    if weight is None:
        return Unfolded(found)
    return Unfolded(tuple((rows, weight if own is None else own.to(weight) @ weight) for rows, own in found))


def factors_of(table: Tensor | Unfolded) -> tuple[Factor, ...]:
    return table.factors if isinstance(table, Unfolded) else ((table, None),)


def spread(factors: Sequence[Factor], place: Int64[Tensor, " entries"], entries: int) -> tuple[Factor, ...]:
    """The same rows at the numbers `place` of a table of `entries` rows; the others are zero."""
    return tuple((rows.new_zeros(entries, rows.shape[1]).index_copy_(0, place.to(rows.device), rows), weight)
                 for rows, weight in factors)  # fmt: skip
