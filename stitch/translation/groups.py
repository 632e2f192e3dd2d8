"""Which rows are solved from the same moments, so that the moments stay within a memory budget."""

# pyright: reportOptionalSubscript=false
# (scipy.sparse carries no types)

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from stitch.regression.moments import Key, Variable
from stitch.regression.sparse_gram import BYTES as OF_ENTRY
from stitch.translation.inputs import Input, Lift

OF_PRODUCT = 12  # bytes per number: float64 for the fit split, float32 or float64 for the sweep split


@dataclass(frozen=True)
class Sizes:
    """How much memory moments of inputs take. `rows` has a chunk of each input's columns as an example.

    `implicit` names the dictionaries whose codes' products with themselves would take more than `budget` bytes: the sparse codes
    are kept in their place (`SparseGram`). `impossible` names those of them whose codes are dense.
    """

    rows: Mapping[str, Variable]
    budget: int
    implicit: frozenset[str]
    impossible: frozenset[str]

    @classmethod
    def of(cls, inputs: Mapping[str, Input], rows: Mapping[str, Variable], budget: int) -> "Sizes":
        lifts = [name for name, found in inputs.items() if isinstance(found, Lift)]
        wide = {name for name in lifts if OF_PRODUCT * rows[name].shape[1] ** 2 > budget}
        dense = frozenset(name for name in wide if isinstance(rows[name], Tensor))
        return cls(rows, budget, frozenset(wide - dense), dense)

    def bytes_of(self, pairs: Collection[Key], tokens: int) -> int:
        """Bytes of the products `pairs` over `tokens` tokens."""
        return sum(self._of_pair(*pair, tokens) for pair in pairs)

    def _of_pair(self, first: str, second: str, tokens: int) -> int:
        one = self.rows[first]
        if first == second and first in self.implicit:
            assert not isinstance(one, Tensor)
            return OF_ENTRY * one.nnz * tokens // one.shape[0]
        return OF_PRODUCT * one.shape[1] * self.rows[second].shape[1]


def needed(inputs: Sequence[str]) -> set[Key]:
    """The products of variables that a ridge on `inputs` is solved from; the names of each are in alphabetical order."""
    pairs = {("target", "target"), *((name, "target") for name in inputs)}
    return pairs | {(min(first, other), max(first, other)) for first in inputs for other in inputs}


def groups(
    rows: Mapping[str, tuple[str, ...]], first_of_all: set[Key], sizes: Sizes, tokens: int
) -> list[tuple[list[str], set[Key]]]:
    """Groups of row names, each with the products that it is solved from: as many rows as the budget holds, at least one.

    `rows` has the inputs of each row. The products `first_of_all` belong to the first group.
    """
    found: list[tuple[list[str], set[Key]]] = [([], set(first_of_all))]
    for name, inputs in rows.items():
        names, pairs = found[-1]
        products = needed(inputs)
        if names and sizes.bytes_of(pairs | products, tokens) > sizes.budget:
            found.append(([name], products))
        else:
            names.append(name)
            pairs |= products
    return found
