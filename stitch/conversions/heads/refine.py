"""Shared keys by alternating least squares on attention scores, with rotation and causal mask.

For one group it minimises, summed over windows, query heads and rows, the variance of s' − s over the row's keys, where s are the
donor's scores and s'_ij = T_h q_i · R(i − j) S K_j. A constant added to a row's scores does not change the softmax, hence the
variance. It is taken under a distribution over keys, half of which is the donor's attention and half uniform. Under the attention
alone it would be the second-order term of the KL divergence. The problem is linear in S for fixed T and in T for fixed S, and is
solved by conjugate gradients in turn.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stitch.conversions.heads.merge import Keys
from stitch.internals.attend import rotated

UNIFORM = 0.5  # share of the uniform distribution


@dataclass(frozen=True)
class AttentionRows:
    """Rows of the attention of a group's heads. `at[r]` is the position of row r; `k` are stacked keys before rotation."""

    q: Float[Tensor, "windows heads rows d"]
    k: Float[Tensor, "windows t stacked"]
    at: Int[Tensor, " rows"]
    scores: Float[Tensor, "windows heads rows t"]
    weights: Float[Tensor, "windows heads rows t"]
    frequencies: Float[Tensor, " planes"]
    scale: float


def rows_of(
    q: Float[Tensor, "windows heads rows d"],
    k: Float[Tensor, "windows t stacked"],
    scores: Float[Tensor, "windows heads rows t"],
    frequencies: Float[Tensor, " planes"],
    scale: float,
    at: Int[Tensor, " rows"],
    uniform: float = UNIFORM,
) -> AttentionRows:
    """Rows with weights. `scores` are the donor's, −∞ at later keys; `scores` and `q` are for the positions `at`."""
    seen = torch.isfinite(scores)
    weights = uniform * (seen / seen.sum(-1, keepdim=True)) + (1 - uniform) * scores.softmax(-1)
    return AttentionRows(q, k, at, scores.masked_fill(~seen, 0.0), weights, frequencies, scale)


class _Product:
    """s' as a bilinear function of rotated queries and keys, with both adjoints."""

    def __init__(self, rows: AttentionRows) -> None:
        self.rows = rows

    def queries(self, query: Float[Tensor, "heads d d"]) -> Float[Tensor, "windows heads rows d"]:
        return rotated(torch.einsum("whrd,hed->whre", self.rows.q, query), self.rows.frequencies, self.rows.at)

    def keys(self, shared: Float[Tensor, "d stacked"]) -> Float[Tensor, "windows t d"]:
        return rotated(self.rows.k @ shared.T, self.rows.frequencies)

    def scores(self, queries: Tensor, keys: Tensor) -> Float[Tensor, "windows heads rows t"]:
        return self.rows.scale * torch.einsum("whrd,wtd->whrt", queries, keys)

    def weighed(self, error: Tensor) -> Tensor:
        """Half the gradient of the rows' variance: w (e − Σ w e)."""
        w = self.rows.weights
        return w * (error - (w * error).sum(-1, keepdim=True))

    def to_query(self, weighed: Tensor, keys: Tensor) -> Float[Tensor, "heads d d"]:
        turned = self.rows.scale * torch.einsum("whrt,wtd->whrd", weighed, keys)
        back = rotated(turned, -self.rows.frequencies, self.rows.at)
        return torch.einsum("whre,whrd->hed", back, self.rows.q)

    def to_shared(self, weighed: Tensor, queries: Tensor) -> Float[Tensor, "d stacked"]:
        turned = self.rows.scale * torch.einsum("whrt,whrd->wtd", weighed, queries)
        return torch.einsum("wtd,wts->ds", rotated(turned, -self.rows.frequencies), self.rows.k)


def error(keys: Keys, rows: AttentionRows) -> float:
    """The objective, relative to its value for constant scores."""
    product = _Product(rows)
    off = product.scores(product.queries(keys.query.to(rows.q)), product.keys(keys.shared.to(rows.q))) - rows.scores
    everything = (rows.scores * product.weighed(rows.scores)).sum()
    return float((off * product.weighed(off)).sum() / everything.clamp_min(1e-30))


def refined(keys: Keys, rows: AttentionRows, *, rounds: int = 4, steps: int = 8) -> Keys:
    """`keys` after `rounds` rounds, in each of which S and then T take `steps` conjugate gradient steps."""
    product = _Product(rows)
    metric_q = _inverse(torch.einsum("whrd,whre->hde", rows.q, rows.q))
    metric_k = _inverse(torch.einsum("wts,wtu->su", rows.k, rows.k))
    shared, query = keys.shared.to(rows.q), keys.query.to(rows.q)
    for _ in range(rounds):
        queries = product.queries(query)
        rest = rows.scores - product.scores(queries, product.keys(shared))
        shared = shared + _solved(
            lambda step, queries=queries: product.scores(queries, product.keys(step)),
            lambda off, queries=queries: product.to_shared(product.weighed(off), queries),
            rest, lambda gradient: gradient @ metric_k, steps,
        )  # fmt: skip
        turned = product.keys(shared)
        rest = rows.scores - product.scores(product.queries(query), turned)
        query = query + _solved(
            lambda step, turned=turned: product.scores(product.queries(step), turned),
            lambda off, turned=turned: product.to_query(product.weighed(off), turned),
            rest, lambda gradient: gradient @ metric_q, steps,
        )  # fmt: skip
    return Keys(shared.double().cpu(), query.double().cpu())


def _inverse(gram: Tensor) -> Tensor:
    """The preconditioner: inverse of a Gram matrix with a thousandth of its mean diagonal added."""
    size = gram.shape[-1]
    damp = 1e-3 * gram.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None] * torch.eye(size).to(gram)
    return torch.linalg.inv((gram + damp).double()).to(gram)


def _solved(
    forward: Callable[[Tensor], Tensor],
    adjoint: Callable[[Tensor], Tensor],
    rest: Tensor,
    precondition: Callable[[Tensor], Tensor],
    steps: int,
) -> Tensor:
    """The x that minimises the weighted square of forward(x) − rest, by preconditioned conjugate gradients from 0."""
    residual = adjoint(rest)
    x = torch.zeros_like(residual)
    towards = precondition(residual)
    direction, now = towards, (residual * towards).sum()
    for _ in range(steps):
        if now <= 0:
            break
        image = adjoint(forward(direction))
        length = now / (direction * image).sum().clamp_min(1e-30)
        x, residual = x + length * direction, residual - length * image
        towards = precondition(residual)
        before, now = now, (residual * towards).sum()
        direction = towards + now / before * direction
    return x
