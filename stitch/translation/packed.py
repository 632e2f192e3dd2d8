"""Look-up tables in few bytes: 8-bit numbers with a scale per row, times a small matrix."""

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
    def of(cls, rows: Float[Tensor, "entries rank"], basis: Float[Tensor, "rank d_out"] | None) -> "Packed":
        """`rows` @ `basis`, with `rows` rounded to 8 bits. With a basis, columns are brought to one size first."""
        if basis is not None:
            size = rows.square().mean(0).sqrt().clamp_min(1e-12)
            rows, basis = rows / size, size[:, None] * basis
        largest = rows.abs().amax(1) if rows.shape[1] else rows.new_zeros(len(rows))
        scales = (largest / LARGEST).clamp_min(1e-12)
        codes = (rows / scales[:, None]).round().to(torch.int8)
        return cls(codes, scales.float(), None if basis is None else basis.float())

    def __len__(self) -> int:
        return len(self.codes)

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
