"""The matrix Σ uᵀu of sparse rows u, kept as its rows: with 65,536 columns it would take 34 GB, the rows of half a million tokens
take 0.4 GB."""

# pyright: reportOptionalSubscript=false, reportArgumentType=false
# (scipy.sparse carries no types)

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float
from torch import Tensor

from sae.csr import csr

BYTES = 24  # of memory per nonzero value: index and value, stored by row and by column
BLOCK = (
    4096  # rows multiplied at once: the results fit the CPU's cache, which is eight times as fast as all rows at once
)


class SparseGram:
    """The symmetric [columns, columns] matrix Σ uᵀu, which can be multiplied with dense matrices.

    Rows are stored in blocks, by row and by column, in float32.
    """

    dtype = torch.float32

    def __init__(self, columns: int):
        self.shape = (columns, columns)
        # Stored by column, a block takes at least 8 bytes per column, so that wide matrices need larger blocks.
        self._rows_of_block = max(BLOCK, columns // 4)
        self._waiting: list[sp.csr_array] = []
        self._blocks: list[tuple[Tensor, Tensor]] = []

    def add(self, rows: sp.csr_array) -> None:
        """Adds Σ uᵀu over `rows` [any, columns]."""
        self._waiting.append(sp.csr_array(rows, dtype=np.float32))
        if sum(part.shape[0] for part in self._waiting) >= self._rows_of_block:
            self._close()

    def __matmul__(self, matrix: Float[Tensor, "columns k"]) -> Float[Tensor, "columns k"]:
        self._close()
        total = torch.zeros(matrix.shape)
        for by_row, by_column in self._blocks:
            total += by_column @ (by_row @ matrix.float())
        return total

    def _close(self) -> None:
        if self._waiting:
            rows = sp.csr_array(sp.vstack(self._waiting, format="csr"))
            self._blocks.append((_as_torch(rows), _as_torch(sp.csr_array(rows.T.tocsr()))))
            self._waiting = []


def _as_torch(matrix: sp.csr_array) -> Tensor:
    starts, columns = (torch.from_numpy(places.astype(np.int64)) for places in (matrix.indptr, matrix.indices))
    return csr(starts, columns, torch.from_numpy(matrix.data), matrix.shape)
