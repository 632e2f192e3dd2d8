"""Shared keys by alternating least squares on the scores themselves, rotation and causal mask included.

For one group: minimise Σ over windows, query heads, rows of the variance of s' − s over the row's keys, s the donor's scores
and s'_ij = T_h q_i · R(i − j) S K_j. The variance is taken under a distribution over keys, half the donor's attention and
half uniform: what all scores of a row share does not count, as a softmax is blind to it; under the attention alone it would
be the second-order term of its KL divergence. S given T, and T given S, are linear: conjugate gradients on both in turn.
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
class Rows:
    """Some rows of the attention of a group's heads: `at[r]` is row r's position; K are the stacked keys before rotation."""

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
) -> Rows:
    """`scores` are the donor's, −∞ at later keys; they and q are of the rows `at`."""
    seen = torch.isfinite(scores)
    weights = uniform * (seen / seen.sum(-1, keepdim=True)) + (1 - uniform) * scores.softmax(-1)
    return Rows(q, k, at, scores.masked_fill(~seen, 0.0), weights, frequencies, scale)


class _Product:
    """s' as a bilinear function of queries and keys that turn, with both of its adjoints."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def queries(self, query: Float[Tensor, "heads d d"]) -> Float[Tensor, "windows heads rows d"]:
        return rotated(torch.einsum("whrd,hed->whre", self.rows.q, query), self.rows.frequencies, self.rows.at)

    def keys(self, shared: Float[Tensor, "d stacked"]) -> Float[Tensor, "windows t d"]:
        return rotated(self.rows.k @ shared.T, self.rows.frequencies)

    def scores(self, queries: Tensor, keys: Tensor) -> Float[Tensor, "windows heads rows t"]:
        return self.rows.scale * torch.einsum("whrd,wtd->whrt", queries, keys)

    def weighed(self, error: Tensor) -> Tensor:
        """The gradient of the rows' variance: w (e − Σ w e)."""
        w = self.rows.weights
        return w * (error - (w * error).sum(-1, keepdim=True))

    def to_query(self, weighed: Tensor, keys: Tensor) -> Float[Tensor, "heads d d"]:
        turned = self.rows.scale * torch.einsum("whrt,wtd->whrd", weighed, keys)
        back = rotated(turned, -self.rows.frequencies, self.rows.at)
        return torch.einsum("whre,whrd->hed", back, self.rows.q)

    def to_shared(self, weighed: Tensor, queries: Tensor) -> Float[Tensor, "d stacked"]:
        turned = self.rows.scale * torch.einsum("whrt,whrd->wtd", weighed, queries)
        return torch.einsum("wtd,wts->ds", rotated(turned, -self.rows.frequencies), self.rows.k)


def error(keys: Keys, rows: Rows) -> float:
    """The objective, as a share of what scores that are all alike would leave."""
    product = _Product(rows)
    off = product.scores(product.queries(keys.query.to(rows.q)), product.keys(keys.shared.to(rows.q))) - rows.scores
    everything = (rows.scores * product.weighed(rows.scores)).sum()
    return float((off * product.weighed(off)).sum() / everything.clamp_min(1e-30))


def refined(keys: Keys, rows: Rows, *, rounds: int = 4, steps: int = 8) -> Keys:
    """`rounds` times S, then T, by `steps` conjugate gradients each, from where they are."""
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
    """Of a Gram matrix with a thousandth of its mean diagonal added: what preconditions."""
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
    """Preconditioned conjugate gradients for the x that minimises the weighed square of forward(x) − rest, from 0."""
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
