"""The kinds of inputs of a least-squares translation: their columns for the fit, and their terms once weights are known.

`x`, SAE codes and earlier streams cost a matrix product at inference. All other inputs are tables: B's embeddings, B's state of a
token without context, positions. Their product with the weights is computed once and stored, so at inference they cost a look-up.
Tables by token have rows for the ids that occur in the text, and their products stay factors until a translation is written.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sae.types import Dictionary
from stitch.activations.paired import Tokens
from stitch.features.codes import sparse_codes
from stitch.regression.moments import Variable
from stitch.translation.types import Codes, Fallback, Position, Residual, Term, Token
from stitch.translation.unfolded import Unfolded


@dataclass(frozen=True)
class Stream:
    """A's residual stream entering block `site`, `back` tokens ago."""

    site: int
    back: int = 0

    def columns(self, tokens: Tokens) -> Variable:
        return tokens.streams[self.site, self.back]

    def term(self, weight: Tensor) -> Term:
        return Term(Residual(self.site, self.back), weight.float())


@dataclass(frozen=True, eq=False)
class Lift:
    """The codes of a dictionary: of an SAE, or of an untrained one as a null."""

    site: int
    dictionary: Dictionary

    def columns(self, tokens: Tokens) -> Variable:
        x = tokens.streams[self.site, 0]
        if self.dictionary.activation in ("relu", "rbf"):
            with torch.no_grad():  # half or all of the features are active: sparse storage would be slower
                return self.dictionary.encode(x.to(self.dictionary.encoder.device)).cpu()
        return sparse_codes(self.dictionary, x)

    def term(self, weight: Tensor) -> Term:
        return Term(Codes(self.site, self.dictionary), weight.float())


@dataclass(frozen=True, eq=False)
class ByToken:
    """The row of `table` for the token id `back` tokens ago; zeros where the text has not begun.

    The table has a row for each id in `keys`, which are sorted and contain all ids of the text that is read; None: for every id.
    `fallback` gives other ids' rows in a composite.
    """

    table: Float[Tensor, "entries columns"]
    back: int = 0
    keys: Int64[Tensor, " entries"] | None = None
    fallback: Fallback | None = None

    def columns(self, tokens: Tokens) -> Variable:
        ids = tokens.ids[:, self.back]
        rows = self.numbers(ids.clamp_min(0))
        return self.table[rows.to(self.table.device)].cpu() * (ids >= 0)[:, None]

    def numbers(self, ids: Int64[Tensor, "*n"]) -> Int64[Tensor, "*n"]:
        """The numbers of the ids' rows."""
        if self.keys is None:
            return ids
        return torch.searchsorted(self.keys, ids.contiguous()).clamp_max(len(self.keys) - 1)

    def term(self, weight: Tensor) -> Term:
        fallback = None if self.fallback is None else self.fallback.times(weight)
        return Term(Token(self.back, self.keys), Unfolded(((self.table, weight),)), fallback)


@dataclass(frozen=True, eq=False)
class ByPosition:
    """The row of `table` for the position."""

    table: Float[Tensor, "positions columns"]

    def columns(self, tokens: Tokens) -> Variable:
        return self.table[tokens.positions]

    def term(self, weight: Tensor) -> Term:
        return Term(Position(), (self.table.double() @ weight).float())


Input = Stream | Lift | ByToken | ByPosition


def streams(inputs: Iterable[Input]) -> list[tuple[int, int]]:
    """The streams of A, by (site, back), that these inputs read."""
    found = {(given.site, given.back) for given in inputs if isinstance(given, Stream)}
    return sorted(found | {(given.site, 0) for given in inputs if isinstance(given, Lift)})


def reach(inputs: Iterable[Input]) -> int:
    """How many tokens back these inputs look up ids."""
    return max((given.back for given in inputs if isinstance(given, ByToken)), default=0)
