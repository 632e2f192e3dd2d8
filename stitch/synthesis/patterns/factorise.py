"""Queries and keys of a given rank whose causal softmax approximates a soft pattern.

The causal softmax does not change with a constant added to a row, or with entries after the diagonal, so both are free. The loss
is the divergence of attention rather than of scores, so tokens count by their attention. The optimisation starts from
`completed`, and is compared with `completed` and `naive`: truncated SVDs of the logarithm with and without these two freedoms.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from stitch.synthesis.patterns.pattern import causal_softmax

FLOOR = 1e-6  # lower bound of attention before taking its logarithm
ROUNDS = 20  # of filling in entries after the diagonal
STEPS = 300


def naive(pattern: Float[Tensor, "length length"], rank: int) -> tuple[Tensor, Tensor]:
    """Queries and keys [length, rank] by the truncated SVD of the logarithm."""
    return _halves(pattern.clamp_min(FLOOR).log(), rank)


def completed(pattern: Float[Tensor, "length length"], rank: int) -> tuple[Tensor, Tensor]:
    """Queries and keys [length, rank] by the SVD of the row-centred logarithm, entries after the diagonal filled in by rounds."""
    causal = torch.ones_like(pattern).tril().bool()
    logs = pattern.clamp_min(FLOOR).log()
    logs = torch.where(causal, logs - (logs * causal).sum(1, keepdim=True) / causal.sum(1, keepdim=True), 0.0)
    q, k = _halves(logs, rank)
    for _ in range(ROUNDS):
        q, k = _halves(torch.where(causal, logs, q @ k.T), rank)
    return q, k


def factorise(pattern: Float[Tensor, "length length"], rank: int) -> tuple[Tensor, Tensor]:
    """Queries and keys [length, rank] at a local minimum of the mean divergence of rows from the pattern, by L-BFGS."""
    causal = torch.ones_like(pattern).tril().bool()
    q, k = completed(pattern, rank)
    q, k = q.contiguous().requires_grad_(), k.contiguous().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [q, k],
        max_iter=STEPS,
        history_size=20,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-12,
        tolerance_change=1e-14,
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        scores = (q @ k.T).masked_fill(~causal, -torch.inf)
        found = -(pattern * scores.log_softmax(1).masked_fill(~causal, 0.0)).sum(1).mean()
        found.backward()
        return found

    with torch.enable_grad():
        optimiser.step(loss)
    return q.detach(), k.detach()


def rank_curve(pattern: Float[Tensor, "length length"], rank: int) -> list[dict]:
    """Errors of all three methods at ranks 1, 2, 4 … and `rank`; `max` and `mean` are those of `factorise`."""
    ranks = sorted({*(2**power for power in range(rank.bit_length())), rank})
    return [
        {
            "rank": one,
            **errors(pattern, *factorise(pattern, one)),
            "naive": errors(pattern, *naive(pattern, one)),
            "completed": errors(pattern, *completed(pattern, one)),
        }
        for one in ranks
    ]


def errors(
    pattern: Float[Tensor, "length length"], q: Float[Tensor, "length rank"], k: Float[Tensor, "length rank"]
) -> dict:
    """`differences` between the pattern and the causal softmax of q kᵀ."""
    return differences(pattern, causal_softmax(q @ k.T))


def differences(pattern: Float[Tensor, "length length"], found: Float[Tensor, "length length"]) -> dict:
    """`max`, the largest absolute difference of an attention weight; `mean`, the mean total variation of rows."""
    gap = (pattern - found).abs()
    return {"max": float(gap.max()), "mean": float(gap.sum(1).mean() / 2)}


def _halves(scores: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    u, s, vh = torch.linalg.svd(scores, full_matrices=False)
    root = s[:rank].sqrt()
    return u[:, :rank] * root, vh[:rank].T * root
