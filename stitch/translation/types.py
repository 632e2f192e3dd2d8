"""A translation: the map from A's residual stream to B's, as plain tensors.

Every way of fitting one ends in the same form, so one module applies them all, `TranslationModule` in
`stitch/modeling/modeling_translation.py`:

    y = bias + Σ over terms of input @ weight

A term reads A's residual stream at a site, at this token or a few before it; or an SAE's codes of it; or a table, which is looked
up by a token id, by the position or by the last few ids and costs no product at inference. A table by token has rows for the ids
that occurred in the text it was made from. Other ids get a product of their embedding with one matrix, see `Fallback`.
"""

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sae.types import Dictionary
from stitch.translation.packed import Packed
from stitch.translation.unfolded import Unfolded, factors_of, spread


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
    """The token id `back` tokens ago. A term on it is a table with one row per id in `keys`, which are sorted; None: every id.

    Other ids add the term's fall-back, or nothing where it has none.
    """

    back: int = 0
    keys: Int64[Tensor, " entries"] | None = field(default=None, repr=False, compare=False)


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
class Fallback:
    """What a table by token has for an id without a row: the id's embedding @ weight. The last row of `weight` is a constant.

    The embedding is one that every composite of the pair holds: A's (`of` "a"), or B's where its head is the same matrix
    ("b"); in both cases the stored rows, which some families scale. About `share` of the tokens need it.
    """

    of: str
    weight: Float[Tensor, "d_embedding_and_1 d_out"]
    share: float

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds per token on average."""
        return round(self.share * self.weight[:-1].numel())

    def always(self, row: Float[Tensor, " d_out"]) -> "Fallback":
        """The fall-back that is `row` for every id."""
        return replace(self, weight=torch.cat([torch.zeros_like(self.weight[:-1]), row.cpu()[None]]))

    def times(self, weight: Float[Tensor, "d_out d_new"]) -> "Fallback":
        """The fall-back of the table whose rows are this one's @ weight."""
        return replace(self, weight=(self.weight.double() @ weight).float())

    def plus(self, other: "Fallback | None") -> "Fallback":
        """The fall-back of the sum of two tables with the same keys."""
        assert other is None or other.of == self.of
        return self if other is None else replace(self, weight=self.weight + other.weight)


@dataclass(frozen=True)
class Term:
    """One summand. `weight` is [d_in, d_out], for tables [entries, d_out], for a routed stream [classes, d_in, d_out].

    With None a stream or codes are added as they are, truncated or zero-padded. Inputs before the text's first token add nothing.
    A table by token may be kept as factors (`Unfolded`) until it is written, and may have a `fallback`. Any table may
    be `Packed`.
    """

    input: Input
    weight: Float[Tensor, "*classes d_in d_out"] | Unfolded | Packed | None
    fallback: Fallback | None = None

    @property
    def is_table(self) -> bool:
        return isinstance(self.input, (Token, Position, Ngram))

    @property
    def matrix(self) -> Tensor:
        """The weight of a term that has one and whose weight is not kept as factors."""
        assert isinstance(self.weight, Tensor)
        return self.weight


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
    def reads_embedding(self) -> bool:
        """Whether a fall-back reads A's embedding."""
        return any(term.fallback is not None and term.fallback.of == "a" for term in self.terms)

    @property
    def multiply_adds(self) -> int:
        """Multiply–adds per token: products with weights and encoders. Looking up a row or a matrix counts as 0.

        A fall-back counts for the share of tokens that need it.
        """
        total = 0
        for term in self.terms:
            if isinstance(term.input, Codes):
                total += term.input.dictionary.encoder.numel()
            if term.fallback is not None:
                total += term.fallback.multiply_adds
            if isinstance(term.weight, Packed):
                total += term.weight.multiply_adds
            elif term.weight is not None and not term.is_table:
                total += (term.matrix[0] if isinstance(term.input, Routed) else term.matrix).numel()
        return total

    @property
    def parameters(self) -> int:
        """Numbers stored: weights, encoders with their thresholds, tables and fall-backs."""
        total = self.bias.numel()
        for term in self.terms:
            if isinstance(term.input, Codes):
                dictionary = term.input.dictionary
                stored = (dictionary.encoder, dictionary.encoder_bias, dictionary.threshold)
                total += sum(part.numel() for part in stored if part is not None)
            total += 0 if term.weight is None else term.weight.numel()
            total += 0 if term.fallback is None else term.fallback.weight.numel()
        return total

    def bytes(self, dtype: torch.dtype) -> int:
        """Bytes on disk in a composite of this dtype: tables in `dtype`, other numbers in float32, keys and classes in int64."""
        tables = [term.weight for term in self.terms if term.is_table and term.weight is not None]
        others = (
            self.parameters - sum(table.numel() for table in tables) + (0 if self.first is None else len(self.first))
        )
        keys = sum(len(of) for term in self.terms if (of := _integers(term.input)) is not None)
        stored = sum(table.bytes if isinstance(table, Packed) else dtype.itemsize * table.numel() for table in tables)
        return 4 * others + stored + 8 * keys


def _integers(read: Input) -> Tensor | None:
    """The keys or classes that are stored with a term."""
    return read.keys if isinstance(read, (Token, Ngram)) else read.classes if isinstance(read, Routed) else None


def merged(translation: Translation) -> Translation:
    """The same map, with tables that are looked up by the same ids added up."""
    tables: dict[Input, Term] = {}
    others = []
    for term in translation.terms:
        if isinstance(term.input, (Token, Position)) and term.weight is not None:
            known = tables.get(term.input)
            tables[term.input] = term if known is None else _added(known, term)
        else:
            others.append(term)
    return replace(translation, terms=(*others, *tables.values()))


def _added(one: Term, other: Term) -> Term:
    """The sum of two tables by token or by position. The keys of one must be among those of the other."""
    assert isinstance(one.weight, Tensor | Unfolded) and isinstance(other.weight, Tensor | Unfolded)
    wide, narrow = (one, other) if len(one.weight) >= len(other.weight) else (other, one)
    assert isinstance(wide.weight, Tensor | Unfolded) and isinstance(narrow.weight, Tensor | Unfolded)
    assert narrow.fallback is None or wide.fallback is not None or len(narrow.weight) == len(wide.weight)
    first, second = factors_of(wide.weight), factors_of(narrow.weight)
    if len(narrow.weight) < len(wide.weight):
        second = spread(second, _place(narrow.input, wide.input), len(wide.weight))
    if isinstance(wide.weight, Tensor) and isinstance(narrow.weight, Tensor):
        total: Tensor | Unfolded = wide.weight + second[0][0]
    else:
        total = Unfolded((*first, *second))
    fallback = narrow.fallback if wide.fallback is None else wide.fallback.plus(narrow.fallback)
    return Term(wide.input, total, fallback)


def _place(narrow: Input, wide: Input) -> Int64[Tensor, " entries"]:
    """The rows of a table that hold the keys of a smaller one."""
    assert isinstance(narrow, Token) and isinstance(wide, Token) and narrow.keys is not None
    if wide.keys is None:
        return narrow.keys
    place = torch.searchsorted(wide.keys, narrow.keys).clamp_max(len(wide.keys) - 1)
    assert torch.equal(wide.keys[place], narrow.keys), "both tables must be of the same text"
    return place
