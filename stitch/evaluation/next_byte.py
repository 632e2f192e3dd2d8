"""What two models with different tokens can be compared by at one place: the distribution of the next byte."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stitch.text.first_bytes import by_first_byte


@dataclass(frozen=True)
class NextByte:
    """The reference of rows that read other tokens: probabilities of the next byte after every token of some windows.

    `exact` marks the places where a token of both ends; rows are compared there alone. `first` is the byte that each of the rows'
    tokens begins with, or 256.
    """

    probabilities: Float[Tensor, "windows context kinds"]
    exact: Bool[Tensor, "windows context"]
    first: Int[Tensor, " vocabulary"]

    def of(self, rows: slice) -> "NextByteOfTokens":
        """The predictions that windows `rows` make, one after another."""
        return NextByteOfTokens(
            self.probabilities[rows, :-1].flatten(0, 1), self.exact[rows, :-1].flatten(), self.first
        )


@dataclass(frozen=True)
class NextByteOfTokens:
    """The same of consecutive tokens."""

    probabilities: Float[Tensor, "tokens kinds"]
    exact: Bool[Tensor, " tokens"]
    first: Int[Tensor, " vocabulary"]

    def part(self, start: int, stop: int) -> "NextByteOfTokens":
        return NextByteOfTokens(self.probabilities[start:stop], self.exact[start:stop], self.first)

    @cached_property
    def logarithms(self) -> Float[Tensor, "tokens kinds"]:
        return self.probabilities.clamp_min(1e-30).log()

    def compared(self, predicted: Float[Tensor, "tokens vocabulary"]) -> Float[Tensor, "3 tokens"]:
        """Nats of KL(reference ‖ predicted) between next bytes, whether the favourite is the same, whether they were compared."""
        theirs = by_first_byte(predicted.exp(), self.first[: predicted.shape[1]]).cpu()
        divergence = (self.probabilities * (self.logarithms - theirs.clamp_min(1e-30).log())).sum(1)
        agreement = self.probabilities.argmax(1) == theirs.argmax(1)
        return torch.stack([divergence, agreement.to(divergence), torch.ones_like(divergence)]) * self.exact
