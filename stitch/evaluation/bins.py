"""Bins of predicted tokens: by how many tokens the model has read, and by how frequent the predicted token is."""

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
    """

    of_position: Int[Tensor, " predictions"]
    of_token: Int[Tensor, " vocabulary"]
    positions: list[str]
    frequencies: list[str]

    @classmethod
    def of(cls, fit: Windows, context: int, vocabulary: int) -> "Bins":
        """Bins for windows of `context` tokens: positions by powers of two, frequencies by the counts in `fit`."""
        by_position, positions = by_powers_of_two(context - 1)
        counts = torch.bincount(fit.ids[:, 1:].flatten().long(), minlength=vocabulary).double()
        rates = 1e6 * counts / counts.sum()
        by_token = torch.bucketize(rates, torch.tensor(RATES, dtype=torch.float64))
        return cls(
            by_position,
            by_token + len(positions),
            positions,
            ["never", *(_between(low, high) for low, high in zip(RATES, [*RATES[1:], None], strict=True))],
        )

    def __len__(self) -> int:
        return len(self.positions) + len(self.frequencies)

    def places(self, ids: Int[Tensor, "batch context"]) -> Int[Tensor, "2 predictions"]:
        """Both bins of every prediction of some windows, window after window."""
        targets = ids[:, 1:].long()
        return torch.stack([self.of_position.expand_as(targets).flatten(), self.of_token[targets.flatten()]])

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
