"""Head rows of tokens as weighted means of the rows of all own tokens that begin with them.

A model hardly ever says a short token where its own vocabulary has a longer one, so a copied row has too low a score: the
probability of a new token is the sum over the own tokens that pass theirs to it.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from stitch.conversions.retokenization.rows import Rows


def marginal_rows(
    own: Rows, matrix: Float[Tensor, "own new"], frequency: Float[Tensor, " own"], otherwise: Rows
) -> Rows:
    """Σ_o π_on w_o for every new token n, where π_on is proportional to T_on p̄_o and sums to 1 over o.

    T (`matrix`, sparse) says how much of an own token's probability is passed to each new one. The row is the gradient in h of
    log Σ_o T_on exp(w_o · h) where own tokens have their mean probabilities p̄ (`frequency`). A token to which none is passed
    has its row of `otherwise`.
    """
    entries = matrix.coalesce()
    (before, after), shares = entries.indices(), entries.values()
    passed = shares.double() * frequency.to(shares.device).double()[before]
    total = torch.zeros(matrix.shape[1], dtype=torch.float64, device=shares.device).index_add_(0, after, passed)
    weights = (passed / total[after].clamp_min(1e-300)).float()
    turned = torch.sparse_coo_tensor(torch.stack([after, before]), weights, matrix.shape[::-1], check_invariants=True)
    rows = torch.sparse.mm(turned.to(own.device), own.float())
    return torch.where((total > 0).to(own.device)[:, None], rows, otherwise)
