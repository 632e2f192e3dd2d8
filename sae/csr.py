"""torch's compressed sparse rows, without its word, once in a process, that they are in beta."""

import warnings

import torch
from jaxtyping import Float, Int64
from torch import Tensor

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Sparse CSR tensor support", UserWarning)
    torch.eye(1).to_sparse_csr()


def csr(
    starts: Int64[Tensor, " _"],
    columns: Int64[Tensor, " entries"],
    values: Float[Tensor, " entries"],
    shape: tuple[int, ...],
) -> Tensor:
    """The matrix with `values` in `columns`, which ascend within a row; row r has entries starts[r] to starts[r + 1] − 1."""
    return torch.sparse_csr_tensor(starts, columns, values, shape, check_invariants=False)
