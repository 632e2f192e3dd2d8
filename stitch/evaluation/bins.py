"""Bins of predicted tokens: by how many tokens the model has read, by how frequent the predicted token is, and by whether the
token that was read last has a row in a composite's tables."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stitch.text.windows import Windows

# Upper ends of the bins of frequency: occurrences per million tokens of the text that was fitted on.
RATES = (0, 10, 30, 100, 300, 1_000, 3_000, 10_000)


@dataclass(frozen=True)
class Bins:
    """The bin of every predicted token, by position and by frequency. Bins of frequency are numbered after those of position.

    A prediction is made at position t, after t + 1 tokens with BOS; the last position of a window predicts nothing.
    `of_read`, if there is one, has by the token at position t the last two bins: 0 where it has a row, 1 where it has none.
    """

    of_position: Int[Tensor, " predictions"]
    of_token: Int[Tensor, " vocabulary"]
    positions: list[str]
    frequencies: list[str]
    of_read: Int[Tensor, " vocabulary"] | None = None

    @classmethod
    def of(cls, fit: Windows, context: int, vocabulary: int, with_row: Int[Tensor, " ids"] | None = None) -> "Bins":
        """Bins for windows of `context` tokens: positions by powers of two, frequencies by the counts in `fit`, and apart
        from them the tokens `with_row` and all others."""
        by_position, positions = by_powers_of_two(context - 1)
        counts = torch.bincount(fit.ids[:, 1:].flatten().long(), minlength=vocabulary).double()
        rates = 1e6 * counts / counts.sum()
        by_token = torch.bucketize(rates, torch.tensor(RATES, dtype=torch.float64))
        return cls(
            by_position,
            by_token + len(positions),
            positions,
            ["never", *(_between(low, high) for low, high in zip(RATES, [*RATES[1:], None], strict=True))],
            None if with_row is None else torch.ones(vocabulary, dtype=torch.long).index_fill(0, with_row.long(), 0),
        )

    def __len__(self) -> int:
        return self.named + (0 if self.of_read is None else 2)

    @property
    def named(self) -> int:
        """The number of bins of position and frequency."""
        return len(self.positions) + len(self.frequencies)

    def places(self, ids: Int[Tensor, "batch context"]) -> Int[Tensor, "ways predictions"]:
        """The bins of every prediction of some windows, window after window: two, or three with `of_read`."""
        targets = ids[:, 1:].long()
        found = [self.of_position.expand_as(targets).flatten(), self.of_token[targets.flatten()]]
        if self.of_read is not None:
            found.append(self.named + self.of_read[ids[:, :-1].long().flatten()])
        return torch.stack(found)

    def sums(
        self,
        ids: Int[Tensor, "batch context"],
        owner: Int[Tensor, " predictions"],
        values: Float[Tensor, " predictions"],
        documents: int,
    ) -> Float[Tensor, "bins documents"]:
        """The sum of `values` over the predictions of every bin and document."""
        total = torch.zeros(len(self) * documents, dtype=torch.float64)
        for places in self.places(ids):
            total.index_add_(0, places * documents + owner, values.double().cpu())
        return total.view(len(self), documents)


def by_powers_of_two(most: int) -> tuple[Int[Tensor, " most"], list[str]]:
    """The bin of each of the numbers 1 … `most`, and the names of all bins: 1, 2–3, 4–7, …, of which the last may be cut off."""
    bins = torch.floor(torch.log2(torch.arange(1, most + 1).double())).long()
    starts = [2**bin for bin in range(int(bins.max()) + 1)]
    ends = [min(2 * start - 1, most) for start in starts]
    return bins, [
        f"{start:,}" if start == end else f"{start:,}–{end:,}" for start, end in zip(starts, ends, strict=True)
    ]


def _between(low: int, high: int | None) -> str:
    if high is None:
        return f"above {low:,}"
    return f"{low:,}–{high:,}" if low else f"up to {high:,}"
