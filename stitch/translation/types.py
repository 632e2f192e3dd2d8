"""A translation: the map from A's residual stream to B's, as plain tensors.

Every way of fitting one ends in the same form, so one module applies them all, `TranslationModule` in
`stitch/modeling/modeling_composite.py`:

    y = bias + Σ over terms of input @ weight

A term reads A's residual stream at a site, at this token or a few before it; or an SAE's codes of it; or a table, which is looked
up by a token id, by the position or by the last few ids and costs no product at inference.
"""

from dataclasses import dataclass, field, replace

from jaxtyping import Float, Int64
from torch import Tensor

from sae.types import Dictionary


@dataclass(frozen=True)
class Residual:
    """x: the residual stream of A entering block `site`, `back` tokens ago.

    A stream of the first token counts as absent: BOS is an attention sink, and its stream carries no information.
    """

    site: int
    back: int = 0


@dataclass(frozen=True)
class Routed:
    """x as in `Residual`, for a term with a matrix per class of the current token; `classes` has the class of every token id."""

    site: int
    back: int
    classes: Int64[Tensor, " vocabulary"] = field(repr=False, compare=False)


@dataclass(frozen=True)
class Codes:
    """z: the codes of A's residual stream entering block `site`, by an SAE."""

    site: int
    dictionary: Dictionary = field(repr=False, compare=False)


@dataclass(frozen=True)
class Token:
    """The token id `back` tokens ago. A term on it is a table with one row per entry of the vocabulary."""

    back: int = 0


@dataclass(frozen=True)
class Position:
    """The position id. A term on it is a table with one row per position."""


@dataclass(frozen=True)
class Ngram:
    """The last `order` token ids. `keys` are the sorted keys (`ngram_keys`) of the n-grams in the table; others add nothing.

    A term on it is a table with one row per key.
    """

    order: int
    keys: Int64[Tensor, " entries"] = field(repr=False, compare=False)


Input = Residual | Routed | Codes | Token | Position | Ngram


@dataclass(frozen=True)
class Term:
    """One summand. `weight` is [d_in, d_out], for tables [entries, d_out], for a routed stream [classes, d_in, d_out].

    With None a stream or codes are added as they are, truncated or zero-padded. Inputs before the text's first token add nothing.
    """

    input: Input
    weight: Float[Tensor, "*classes d_in d_out"] | None

    @property
    def is_table(self) -> bool:
        return isinstance(self.input, (Token, Position, Ngram))


@dataclass(frozen=True)
class Translation:
    """A fitted map. `first` is B's state for BOS at position 0, which has no context and is therefore a known constant."""

    name: str
    terms: tuple[Term, ...]
    bias: Float[Tensor, " d_out"]
    first: Float[Tensor, " d_out"] | None = None

    def starting_with(self, first: Float[Tensor, " d_out"]) -> "Translation":
        """The same map with B's own state for BOS at position 0."""
        return replace(self, first=first)

    @property
    def sites(self) -> set[int]:
        """The sites of A that the terms read."""
        return {term.input.site for term in self.terms if isinstance(term.input, (Residual, Routed, Codes))}

    @property
    def multiply_adds(self) -> int:
        """Multiply–adds per token: products with weights and encoders. Looking up a row or a matrix counts as 0."""
        total = 0
        for term in self.terms:
            if isinstance(term.input, Codes):
                total += term.input.dictionary.encoder.numel()
            if term.weight is not None and not term.is_table:
                total += term.weight[0].numel() if isinstance(term.input, Routed) else term.weight.numel()
        return total

    @property
    def parameters(self) -> int:
        """Numbers stored: weights, encoders and tables."""
        total = self.bias.numel()
        for term in self.terms:
            if isinstance(term.input, Codes):
                dictionary = term.input.dictionary
                total += dictionary.encoder.numel() + dictionary.encoder_bias.numel()
            total += 0 if term.weight is None else term.weight.numel()
        return total


def merged(translation: Translation) -> Translation:
    """The same map, with tables that are looked up by the same ids added up."""
    tables: dict[Input, Tensor] = {}
    others = []
    for term in translation.terms:
        if isinstance(term.input, (Token, Position)) and term.weight is not None:
            known = tables.get(term.input)
            tables[term.input] = term.weight if known is None else known + term.weight
        else:
            others.append(term)
    return replace(translation, terms=(*others, *(Term(input, table) for input, table in tables.items())))
