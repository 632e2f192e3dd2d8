"""Look-up tables in few bytes: 8-bit numbers with a scale per row, times a small matrix."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int8, Int64
from torch import Tensor

LARGEST = 127


@dataclass(frozen=True, eq=False)
class Packed:
    """A table whose row i is scales[i] · codes[i] @ basis. Without `basis` it is scales[i] · codes[i]."""

    codes: Int8[Tensor, "entries rank"]
    scales: Float[Tensor, " entries"]
    basis: Float[Tensor, "rank d_out"] | None

    @classmethod
    def of(cls, parts: Callable[[], Iterable[Tensor]], basis: Float[Tensor, "rank d_out"] | None) -> "Packed":
        """Rows [entries, rank] @ `basis`, with the rows rounded to 8 bits. `parts` gives them some at a time.

        With a basis they are read twice: columns are brought to one size first.
        """
        size = None
        if basis is not None:
            size = _column_sizes(parts())
            basis = (size[:, None] * basis).float()
        rounded = [_rounded(rows if size is None else rows / size) for rows in parts()]
        codes, scales = (torch.cat(column) for column in zip(*rounded, strict=True))
        return cls(codes, scales, basis)

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, order: Int64[Tensor, " n"]) -> "Packed":
        """The table of the rows with these numbers."""
        return Packed(self.codes[order], self.scales[order], self.basis)

    @property
    def width(self) -> int:
        return (self.codes if self.basis is None else self.basis).shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), self.width

    def numel(self) -> int:
        """Numbers stored."""
        return self.codes.numel() + self.scales.numel() + self.multiply_adds

    @property
    def multiply_adds(self) -> int:
        """Per token."""
        return 0 if self.basis is None else self.basis.numel()

    @property
    def bytes(self) -> int:
        return self.codes.numel() + 4 * self.scales.numel() + 4 * self.multiply_adds

    def rows(self, index: Int64[Tensor, " n"]) -> Float[Tensor, "n d_out"]:
        """The rows with these numbers."""
        chosen = self.codes[index].float() * self.scales[index][:, None]
        return chosen if self.basis is None else chosen @ self.basis


def _column_sizes(parts: Iterable[Tensor]) -> Float[Tensor, " rank"]:
    """Root mean squares of the columns."""
    squares, count = torch.tensor(0.0), 0
    for rows in parts:
        squares, count = squares + rows.square().sum(0), count + len(rows)
    return (squares / count).sqrt().clamp_min(1e-12)


def _rounded(rows: Float[Tensor, "n rank"]) -> tuple[Int8[Tensor, "n rank"], Float[Tensor, " n"]]:
    """Codes and scales."""
    largest = rows.abs().amax(1) if rows.shape[1] else rows.new_zeros(len(rows))
    scales = (largest / LARGEST).clamp_min(1e-12)
    return (rows / scales[:, None]).round().to(torch.int8), scales.float()
