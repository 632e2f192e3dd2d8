"""A model with one head that has a given attention pattern; its output is the attended token."""

import string

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stitch.synthesis.blueprint import Block, Blueprint, LookUp, Select, allot
from stitch.synthesis.trials import Trial

TOKENS = ("<s>", *string.ascii_lowercase)


def hard_pattern(targets: Int64[Tensor, " length"]) -> Blueprint:
    """The query at i attends to `targets[i]` for any tokens."""
    at = allot(own=len(TOKENS), attended=len(TOKENS))
    return _copying(at, Select(targets, at["own"], at["attended"]), len(targets))


def soft_pattern(q: Float[Tensor, "length rank"], k: Float[Tensor, "length rank"]) -> Blueprint:
    """Attention is the causal softmax of q kᵀ for any tokens; learned positions hold q and k."""
    length, rank = q.shape
    at = allot(
        own=len(TOKENS),
        attended=len(TOKENS),
        query=rank,
        query_minus=rank,
        key=rank,
        key_minus=rank,
        filler=1,
        filler_minus=1,
    )
    width = sum(map(len, at.values()))
    # Queries and keys get the same norm. Negations keep the mean at 0; a filler gives all positions the same norm.
    size = (q.norm() / k.norm()).sqrt()
    q, k = q / size, k * size
    squared_norms = q.square().sum(1) + k.square().sum(1)
    filler = (squared_norms.max() - squared_norms).sqrt()[:, None]
    positions = torch.zeros(length, width, dtype=torch.float64)
    for name, value in (("query", q), ("key", k), ("filler", filler)):
        positions[:, at[name]], positions[:, at[f"{name}_minus"]] = value, -value
    unit = torch.eye(width, dtype=torch.float64)
    head = LookUp(
        query=unit[:, at["query"]], query_bias=torch.zeros(rank, dtype=torch.float64), key=unit[:, at["key"]],
        source=at["own"], into=at["attended"],
    )  # fmt: skip
    return _copying(at, head, length, positions)


def _copying(at: dict[str, Tensor], head: Select | LookUp, length: int, positions: Tensor | None = None) -> Blueprint:
    width = sum(map(len, at.values()))
    unit = torch.eye(width, dtype=torch.float64)
    specimens = torch.randint(1, len(TOKENS), (1, length), generator=torch.Generator().manual_seed(0))
    specimens[:, 0] = 0
    asked = torch.ones_like(specimens, dtype=torch.bool)
    asked[:, 1:] = isinstance(head, Select)  # soft attention has no single answer
    return Blueprint(
        TOKENS,
        unit[at["own"]],
        (Block((head,)),),
        unit[:, at["attended"]],
        length,
        specimens,
        asked,
        positions=positions,
    )


def trials(targets: Int64[Tensor, " length"], tokens: int, seed: int) -> Trial:
    """Random tokens; the answer is the attended one."""
    rows = max(tokens // len(targets), 1)
    ids = torch.randint(1, len(TOKENS), (rows, len(targets)), generator=torch.Generator().manual_seed(seed))
    ids[:, 0] = 0
    return Trial("random tokens", ids, ids[:, targets])
