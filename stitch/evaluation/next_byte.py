"""What two models with different tokens can be compared by at one place: the next byte, and the bytes of the likeliest token."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stitch.text.first_bytes import by_first_byte


@dataclass(frozen=True)
class NextByte:
    """The reference of rows that read other tokens: probabilities of the next byte after every token of some windows.

    `favourites` are the bytes of the reference's likeliest token there. `exact` marks the places where a token of both ends; rows
    are compared there alone. `first` is the byte that each of the rows' tokens begins with, or 256; `pieces` are its bytes.
    """

    probabilities: Float[Tensor, "windows context kinds"]
    favourites: list[list[bytes | None]]
    exact: Bool[Tensor, "windows context"]
    first: Int[Tensor, " vocabulary"]
    pieces: list[bytes | None]

    def of(self, rows: slice) -> "NextByteOfTokens":
        """The predictions that windows `rows` make, one after another."""
        favourites = [piece for window in self.favourites[rows] for piece in window[:-1]]
        return NextByteOfTokens(
            self.probabilities[rows, :-1].flatten(0, 1),
            favourites,
            self.exact[rows, :-1].flatten(),
            self.first,
            self.pieces,
        )


@dataclass(frozen=True)
class NextByteOfTokens:
    """The same of consecutive tokens."""

    probabilities: Float[Tensor, "tokens kinds"]
    favourites: list[bytes | None]
    exact: Bool[Tensor, " tokens"]
    first: Int[Tensor, " vocabulary"]
    pieces: list[bytes | None]

    def part(self, start: int, stop: int) -> "NextByteOfTokens":
        some = slice(start, stop)
        return replace(
            self, probabilities=self.probabilities[some], favourites=self.favourites[some], exact=self.exact[some]
        )

    @cached_property
    def logarithms(self) -> Float[Tensor, "tokens kinds"]:
        return self.probabilities.clamp_min(1e-30).log()

    def compared(self, predicted: Float[Tensor, "tokens vocabulary"]) -> Float[Tensor, "3 tokens"]:
        """Nats of KL(reference ‖ predicted) between next bytes, whether favourites agree, and whether they were compared."""
        theirs = by_first_byte(predicted.exp(), self.first[: predicted.shape[1]]).cpu()
        divergence = (self.probabilities * (self.logarithms - theirs.clamp_min(1e-30).log())).sum(1)
        chosen = [self.pieces[token] if token < len(self.pieces) else None for token in predicted.argmax(1).tolist()]
        agreement = torch.tensor([agree(own, other) for own, other in zip(self.favourites, chosen, strict=True)])
        return torch.stack([divergence, agreement.to(divergence), torch.ones_like(divergence)]) * self.exact


def agree(one: bytes | None, other: bytes | None) -> bool:
    """Whether two tokens say the same as far as both reach. Special ones, without bytes, agree with each other alone."""
    if not one or not other:
        return not one and not other
    return one.startswith(other) or other.startswith(one)
