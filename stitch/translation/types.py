"""What a translation is: the map from A's residual stream to B's, as plain tensors.

Every family in this folder ends in the same form, so that one module, `TranslationModule` in
`stitch/modeling/modeling_composite.py`, applies them all and a checkpoint needs no code of its own per family:

    y = bias + Σ over terms of input @ weight

What a term may read: A's residual stream at a site, now or a few tokens back; an SAE's codes of it; and what costs no
product at inference: a table looked up by a token id, by a position, by the last few ids.
"""

from dataclasses import dataclass, field, replace

from jaxtyping import Float, Int64
from torch import Tensor

from sae.types import Dictionary


@dataclass(frozen=True)
class Residual:
    """x: the residual stream of A entering block `site`, `back` tokens ago.

    A stream before the text's second token counts as absent: the first token (BOS) is a sink, its stream says nothing.
    """

    site: int
    back: int = 0


@dataclass(frozen=True)
class Routed:
    """x as `Residual` has it, for a term with a matrix per class of the current token; `classes` has the class of every id."""

    site: int
    back: int
    classes: Int64[Tensor, " vocabulary"] = field(repr=False, compare=False)


@dataclass(frozen=True)
class Codes:
    """z: the latents that an SAE of A finds in the residual stream entering block `site`."""

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
    """The last `order` token ids, if they are one of the n-grams with these `keys` (see `ngram_keys`, sorted); else nothing.

    A term on it is a table with one row per key.
    """

    order: int
    keys: Int64[Tensor, " entries"] = field(repr=False, compare=False)


Input = Residual | Routed | Codes | Token | Position | Ngram


@dataclass(frozen=True)
class Term:
    """One summand. `weight` is [d_in, d_out], for tables [entries, d_out], for a routed stream [classes, d_in, d_out]; None
    passes a stream or codes on, cut or zero-padded. An input that lies before the text's first token adds nothing."""

    input: Input
    weight: Float[Tensor, "*classes d_in d_out"] | None

    @property
    def is_table(self) -> bool:
        return isinstance(self.input, (Token, Position, Ngram))


@dataclass(frozen=True)
class Translation:
    """A fitted map. `first` is B's state for BOS at position 0: it has no context, so it is a constant and known exactly."""

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
        """Multiply–adds per token: products with weights and encoders; look-ups, of a matrix too, cost nothing."""
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
    """The same map with one table per token offset: tables of the same ids add up."""
    tables: dict[Input, Tensor] = {}
    others = []
    for term in translation.terms:
        if isinstance(term.input, (Token, Position)) and term.weight is not None:
            known = tables.get(term.input)
            tables[term.input] = term.weight if known is None else known + term.weight
        else:
            others.append(term)
    return replace(translation, terms=(*others, *(Term(input, table) for input, table in tables.items())))
