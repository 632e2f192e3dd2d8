"""Second moments of the inputs and the target of a regression, accumulated over a stream of tokens in float64.

A variable is a block of columns per token: dense (`x`, `embedding`, `target`) or sparse (an SAE's codes, which stay sparse).
Least squares needs only these moments. One pass over the fit tokens therefore serves every regression, and one over the held-out
tokens every choice of λ.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float
from torch import Tensor

from stitch.errors import StitchError
from stitch.regression.sparse_gram import SparseGram

Variable = Tensor | sp.csr_array  # [tokens, columns]; scipy's classes are untyped, hence the Any below
Key = tuple[str, str]  # two variables whose product is asked for


@dataclass(frozen=True)
class Moments:
    """`products[u, v]` is Σ over tokens of uᵀ v, `sums[u]` the column sums, `squares[u]` the column sums of squares."""

    count: int
    sums: dict[str, Float[Tensor, " _"]]
    squares: dict[str, Float[Tensor, " _"]]
    products: Mapping[Key, Float[Tensor, "_ _"] | SparseGram]

    @cached_property
    def means(self) -> dict[str, Float[Tensor, " _"]]:
        return {name: total / self.count for name, total in self.sums.items()}

    def product(self, first: str, second: str) -> Float[Tensor, "rows columns"]:
        """Σ firstᵀ second, in whichever order it was accumulated. Must not be stored as a SparseGram."""
        stored = self.stored(first, second)
        assert isinstance(stored, Tensor), f"the products of {first} are never formed"
        return stored

    def stored(self, first: str, second: str) -> Tensor | SparseGram:
        """Σ firstᵀ second as it was accumulated: a matrix, or a SparseGram that can only be multiplied with one."""
        if (first, second) in self.products:
            return self.products[first, second]
        other = self.products[second, first]
        return other.T if isinstance(other, Tensor) else other

    def covariance(self, first: str, second: str) -> Float[Tensor, "rows columns"]:
        """The covariance of two variables' columns, divided by the number of tokens."""
        return self.product(first, second) / self.count - torch.outer(self.means[first], self.means[second])

    def covariance_times(self, first: str, second: str, matrix: Float[Tensor, "columns k"]) -> Float[Tensor, "rows k"]:
        """The covariance of two variables times a matrix, without forming the covariance, which may be very large."""
        explained = self.product_times(first, second, matrix) / self.count
        return explained - torch.outer(self.means[first], self.means[second] @ matrix)

    def product_times(self, first: str, second: str, matrix: Float[Tensor, "columns k"]) -> Float[Tensor, "rows k"]:
        """Σ firstᵀ second times a matrix, computed in the stored precision and returned in float64."""
        stored = self.stored(first, second)
        return (stored @ matrix.to(stored.dtype)).double()

    def combined(self, name: str, parts: Mapping[str, Float[Tensor, "_ columns"]], others: Iterable[str]) -> "Moments":
        """These moments with a new variable `name` = Σ u @ parts[u]: its sums, squares and products with itself and `others`.

        The moments of linear functions of the variables follow from those of the variables; no token is read again.
        """

        def product_with(other: str) -> Tensor:
            terms = (self.product_times(other, part, matrix).T for part, matrix in parts.items())
            return sum(terms, torch.tensor(0.0))

        own = sum((product_with(part) @ matrix for part, matrix in parts.items()), torch.tensor(0.0))
        total = sum((self.sums[part] @ matrix for part, matrix in parts.items()), torch.tensor(0.0))
        return Moments(
            self.count,
            {**self.sums, name: total},
            {**self.squares, name: own.diagonal()},
            {**self.products, (name, name): own, **{(name, other): product_with(other) for other in others}},
        )


def accumulate(
    chunks: Iterable[Mapping[str, Variable]],
    pairs: Iterable[Key],
    single: Collection[str] = (),
    *,
    implicit: Collection[str] = (),
    sums_of_single: torch.dtype = torch.float64,
) -> Moments:
    """The moments of the variables in `chunks`, in one pass, with the products of `pairs`.

    Each chunk maps the names of all variables to their rows for the same tokens. Products with a variable named in `single` are
    computed in float32 within a chunk and summed in `sums_of_single`. That is twice as fast, and accurate enough for bounded
    values such as codes and tables; it is not for a residual stream, whose largest columns are 10³ times its smallest. float32
    sums take half the memory, and are accurate enough to measure an error but not to solve equations. The product of a sparse
    variable named in `implicit` with itself becomes a SparseGram.
    """
    pairs = list(dict.fromkeys(pairs))
    count, sums, squares, products = 0, {}, {}, {}
    for chunk in chunks:
        # Convert each variable once per chunk and precision. Sparse variables stay sparse.
        wide: dict[str, Any] = {name: _as(value, torch.float64) for name, value in chunk.items()}
        narrow: dict[str, Any] = {name: _as(value, torch.float32) for name, value in chunk.items()} if single else {}
        count += next(iter(wide.values())).shape[0]
        for name, value in wide.items():
            _add(sums, name, _column_sums(value))
            _add(squares, name, _column_sums(value * value))
        for first, second in pairs:
            if first == second and first in implicit:
                products.setdefault((first, first), SparseGram(wide[first].shape[1])).add(chunk[first])
                continue
            is_single = first in single or second in single
            rows, dtype = (narrow, sums_of_single) if is_single else (wide, torch.float64)
            _add(products, (first, second), _product(rows[first], rows[second]).to(dtype))
    for name, found in squares.items():
        if not found.isfinite().all():
            raise StitchError(
                f"a regression needs finite numbers, whose squares are finite too; those of `{name}` are not. "
                "Look for NaN in the model's weights, or load it in another precision (`dtype` fp32)."
            )
    return Moments(count, sums, squares, products)


def _as(value: Variable, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(dtype)
    return value.astype(np.float64 if dtype == torch.float64 else np.float32)


def _add(store: dict, key, value: Tensor) -> None:
    if key in store:
        store[key] += value
    else:
        store[key] = value.clone()


def _column_sums(value: Variable) -> Tensor:
    if isinstance(value, Tensor):
        return value.sum(0)
    return torch.from_numpy(np.asarray(value.sum(axis=0)))


def _product(first: Variable, second: Variable) -> Tensor:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first.T @ second
    if isinstance(first, Tensor):
        return _product(second, first).T
    if isinstance(second, Tensor):
        return torch.from_numpy(first.T @ second.cpu().numpy())
    return torch.from_numpy((first.T @ second).toarray())
