"""What a translation is: the map from A's residual stream to B's, as plain tensors.

Every family in this folder ends in the same form, so that one module (`stitch.modeling_composite.TranslationModule`) applies
them all and a checkpoint needs no code of its own per family:

    y = bias + Σ over terms of input @ weight

What a term may read: A's residual stream at a site, an SAE's codes of it, or the token id (a look-up, free at inference).
"""

from dataclasses import dataclass, field, replace

from jaxtyping import Float
from torch import Tensor

from sae.types import Dictionary


@dataclass(frozen=True)
class Residual:
    """x: the residual stream of A entering block `site`."""

    site: int


@dataclass(frozen=True)
class Codes:
    """z: the latents that an SAE of A finds in the residual stream entering block `site`."""

    site: int
    dictionary: Dictionary = field(repr=False, compare=False)


@dataclass(frozen=True)
class Token:
    """The token id. A term on it is a table with one row per entry of the vocabulary: whatever B knows of a token on its own."""


@dataclass(frozen=True)
class Term:
    """One summand. `weight` is [d_in, d_out], for `Token` [vocabulary, d_out]; None passes the input on, cut or zero-padded."""

    input: Residual | Codes | Token
    weight: Float[Tensor, "d_in d_out"] | None


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
    def multiply_adds(self) -> int:
        """Multiply–adds per token: products with weights and encoders; look-ups cost nothing."""
        total = 0
        for term in self.terms:
            if isinstance(term.input, Codes):
                total += term.input.dictionary.encoder.numel()
            if term.weight is not None and not isinstance(term.input, Token):
                total += term.weight.numel()
        return total
