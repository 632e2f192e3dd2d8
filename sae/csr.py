"""torch's compressed sparse rows (CSR), without the warning that torch issues once per process about their beta state."""

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
    """The CSR matrix whose row r has the entries starts[r] to starts[r + 1] − 1 of `columns` and `values`.

    `columns` must ascend within a row. The arguments are not checked.
    """
    return torch.sparse_csr_tensor(starts, columns, values, shape, check_invariants=False)
