"""Scores on held-out text: cross-entropy, perplexity, KL to a reference, top-1 agreement, and intervals over documents.

All rows of a table are scored on the same windows with the same reference logits, so their differences are paired.
"""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from stitch.errors import StitchError
from stitch.evaluation.bins import Bins
from stitch.evaluation.intervals import effective_number, ratio_interval
from stitch.evaluation.next_byte import NextByte, NextByteOfTokens
from stitch.text.windows import Windows


@dataclass(frozen=True)
class Batch:
    """Some windows of the text: their ids, and which rows of `Windows` they are, by which cached activations are found."""

    ids: Int[Tensor, "batch context"]
    rows: slice


Logits = Callable[[Batch], Float[Tensor, "batch context vocabulary"]]


@dataclass(frozen=True)
class Scores:
    """A row's sums per document: nats of cross-entropy, nats of KL(reference ‖ row), top-1 agreements, predicted tokens.

    `compared` are the tokens at which the row was compared with the reference; None: all.
    `sample` has the tokens that the row was scored on, where the sums were carried over from a part of the text
    (`carried_over`). `binned` has the nats by bin, for rows that they were asked for.
    """

    nats: Float[Tensor, " documents"]
    kl: Float[Tensor, " documents"] | None
    agreements: Float[Tensor, " documents"] | None
    tokens: Float[Tensor, " documents"]
    sample: Float[Tensor, " documents"] | None = None
    binned: Float[Tensor, "bins documents"] | None = None
    compared: Float[Tensor, " documents"] | None = None

    @property
    def ce(self) -> float:
        """Cross-entropy in nats per predicted token."""
        return float(self.nats.sum() / self.tokens.sum())

    @property
    def documents(self) -> int:
        """The number of documents with predicted tokens."""
        return int((self.tokens > 0).sum())

    @property
    def effective_documents(self) -> float:
        """The number of documents of equal length that would vary as little (see `effective_number`)."""
        return effective_number(self.tokens)

    def interval(self, minus: "Scores | None" = None, level: float = 0.95) -> tuple[float, float]:
        """The interval of the cross-entropy over documents, or that of its paired difference to another row."""
        rows = [self] if minus is None else [self, minus]
        effective = min(effective_number(row.tokens if row.sample is None else row.sample) for row in rows)
        nats = self.nats if minus is None else self.nats - minus.nats
        return ratio_interval(nats, self.tokens, level, effective)

    def difference(self, other: "Scores", name: str = "ce") -> dict[str, float]:
        """This row's cross-entropy minus another's, in nats per token, paired over documents: `name`, `name`_low, `name`_high."""
        low, high = self.interval(minus=other)
        return {name: self.ce - other.ce, f"{name}_low": low, f"{name}_high": high}

    def __add__(self, other: "Scores") -> "Scores":
        """The scores on the text of both, of documents with the same numbers."""

        def both(one: Tensor | None, two: Tensor | None) -> Tensor | None:
            return None if one is None or two is None else one + two

        return Scores(
            self.nats + other.nats, both(self.kl, other.kl), both(self.agreements, other.agreements),
            self.tokens + other.tokens, binned=both(self.binned, other.binned),
            compared=both(self.compared, other.compared),
        )  # fmt: skip

    def row(self, name: str) -> dict:
        """The row as report.json has it."""
        low, high = self.interval()
        total = (self.tokens if self.compared is None else self.compared).sum()
        scored = {} if self.sample is None else {"tokens": int(self.sample.sum())}
        return {
            "name": name,
            **scored,
            "ce": self.ce,
            "ce_low": low,
            "ce_high": high,
            "ppl": math.exp(min(self.ce, 700.0)),
            "kl_to_b": None if self.kl is None else float(self.kl.sum() / total),
            "top1": None if self.agreements is None else float(self.agreements.sum() / total),
        }


def mean_of(rows: Sequence[Scores]) -> Scores:
    """The mean of several rows, such as the draws of a null, scored on the same windows."""

    def mean(values: list[Tensor | None]) -> Tensor | None:
        there = [value for value in values if value is not None]
        return torch.stack(there).mean(0) if there else None

    nats = torch.stack([row.nats for row in rows]).mean(0)
    kl, agreements = mean([row.kl for row in rows]), mean([row.agreements for row in rows])
    return Scores(nats, kl, agreements, rows[0].tokens, compared=rows[0].compared)


def carried_over(row: Scores, beside: Scores, whole: Scores) -> Scores:
    """The scores of a row on all text, estimated from those on a part of it and from another row.

    `row` and `beside` are scored on the part; `whole` is the other row on all text. This is the regression estimator of survey
    sampling (Cochran 1977, chapter 7): the mean on the part, corrected by how much easier or harder the part is for
    the other row, as far as the two go together over its documents. A document's sums carry its influence on the estimate, so
    that intervals and paired differences are those of the estimate.
    """

    def estimate(mine: Tensor, other: Tensor, all_of_it: Tensor, tokens: Tensor, all_tokens: Tensor) -> Tensor:
        scale = all_tokens.sum() / tokens.sum()
        (mean, own), (part, others), (total, everywhere) = (
            _deviations(sums, counts) for sums, counts in ((mine, tokens), (other, tokens), (all_of_it, all_tokens))
        )
        slope = (own @ others) / (others @ others).clamp_min(1e-12)
        mean = mean + slope * (total - part)
        return mean * all_tokens + slope * everywhere + scale * (own - slope * others)

    compared = (
        (row.tokens, whole.tokens) if row.compared is None or whole.compared is None else (row.compared, whole.compared)
    )
    pairs = [(row.kl, beside.kl, whole.kl), (row.agreements, beside.agreements, whole.agreements)]
    kl, agreements = (
        None if a is None or b is None or c is None else estimate(a, b, c, *compared) for a, b, c in pairs
    )
    nats = estimate(row.nats, beside.nats, whole.nats, row.tokens, whole.tokens)
    return Scores(nats, kl, agreements, whole.tokens, row.tokens, compared=whole.compared)


def _deviations(sums: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The mean per token, and how far each document's sum is from it."""
    mean = sums.sum() / tokens.sum()
    return mean, sums - mean * tokens


def whole_model(net: nn.Module) -> Logits:
    """The logits of a causal language model of transformers."""
    device = next(net.parameters()).device
    return lambda batch: net(input_ids=batch.ids.to(device), use_cache=False).logits


CACHED = 2**24  # bytes of logits that are computed with at a time: larger arrays exceed a CPU's caches


def batches(windows: Windows, vocabulary: int, memory: int, part: range) -> Iterator[Batch]:
    """Windows of `part` in batches whose logits take about 16 MiB, and six copies of them at most a quarter of `memory` bytes.

    Larger batches are slower on a CPU: their arrays are returned to the system after every use. A batch has at least one window.
    With a large vocabulary its logits alone may exceed the budget: `evaluate` then holds them twice, the row's and, as
    probabilities, the reference's.
    """
    window = windows.context * vocabulary * 4
    size = max(1, min(CACHED // window, memory // 4 // (window * 6)))
    for start in range(part.start, part.stop, size):
        rows = slice(start, min(start + size, part.stop))
        yield Batch(windows.ids[rows].long(), rows)


@torch.no_grad()
def evaluate(
    rows: dict[str, Logits],
    windows: Windows,
    *,
    vocabulary: int,
    reference: Logits | NextByte | None = None,
    memory: int = 2**30,
    part: range | None = None,
    counted: Bool[Tensor, " vocabulary"] | None = None,
    bins: Bins | None = None,
    binned: Collection[str] = (),
    progress: Callable[[str, int, int], None] | None = None,
    task: str = "evaluation (tokens)",
) -> dict[str, Scores]:
    """Scores every row on every window, or on those of `part`.

    KL and top-1 agreement compare a row with the distribution of `reference`, which may be `NextByte`.
    Position 0 (BOS) predicts the first token; the last position of a window predicts nothing. Logits beyond `vocabulary`, which
    are padding rows of an embedding, are left out. `counted` says of which tokens predictions count; None: of all. `memory` is in
    bytes. Of the rows in `binned`, nats are also summed by `bins`.
    Raises: StitchError when a row's logits are not finite.
    """
    documents = int(windows.document.max()) + 1
    sums = {name: torch.zeros(5, documents, dtype=torch.float64) for name in rows}
    by_bin: dict[str, Tensor] = {}
    in_order = sorted(rows, key=lambda name: rows[name] is not reference)  # its own row first: then its logits can go
    for batch in batches(windows, vocabulary, memory, range(len(windows.ids)) if part is None else part):
        owner = windows.document[batch.rows][:, 1:].flatten().long()
        target = batch.ids[:, 1:].flatten()
        known = None if reference is None or isinstance(reference, NextByte) else reference(batch)
        base = reference.of(batch.rows) if isinstance(reference, NextByte) else _References.of(known, vocabulary)
        for number, name in enumerate(in_order, 1):
            known = known if rows[name] is reference else None
            columns = _compared(rows[name](batch) if known is None else known, target, base, vocabulary)
            if not torch.isfinite(columns[0]).all():
                raise StitchError(f"logits must be finite; {name} gives NaN or infinity: try `dtype=fp32`.")
            if counted is not None:
                columns = columns * counted[target].to(columns.device)
            sums[name].index_add_(1, owner, columns.double().cpu())
            if bins is not None and name in binned:
                by_bin[name] = by_bin.get(name, 0) + bins.sums(batch.ids, owner, columns[0], documents)
            if progress:  # a row counts as its share of the tokens that all of them are scored on
                share = batch.ids.numel() * number // len(rows)
                progress(task, batch.rows.start * windows.context + share, windows.tokens)
    return {
        name: Scores(
            total[0],
            None if reference is None else total[1],
            None if reference is None else total[2],
            total[4],
            binned=by_bin.get(name),
            compared=total[3] if isinstance(reference, NextByte) else None,
        )
        for name, total in sums.items()
    }


def _compared(
    logits: Tensor, target: Tensor, base: "_References | NextByteOfTokens | None", vocabulary: int
) -> Float[Tensor, "5 tokens"]:
    """For each predicted token: nats, nats of KL, whether the favourite is the same, whether it was compared, and 1."""
    columns: list[Tensor] = []
    start = 0
    for predicted in _log_probabilities(logits, vocabulary):
        stop = start + len(predicted)
        nats = -predicted.gather(1, target[start:stop, None].to(predicted.device))[:, 0]
        beside = nats.new_zeros(3, len(nats)) if base is None else base.part(start, stop).compared(predicted).to(nats)
        columns.append(torch.cat([nats[None], beside, torch.ones_like(nats)[None]]))
        start = stop
    return torch.cat(columns, 1)


@dataclass(frozen=True)
class _References:
    """The distributions that rows are compared with, by the first of the tokens that each is for."""

    parts: "dict[int, _Reference]"

    @classmethod
    def of(cls, logits: Tensor | None, vocabulary: int) -> "_References | None":
        if logits is None:
            return None
        parts, start = {}, 0
        for some in _log_probabilities(logits, vocabulary):
            parts[start] = _Reference(some)
            start += len(some)
        return cls(parts)

    def part(self, start: int, stop: int) -> "_Reference":
        """That for tokens `start` to `stop`: rows are cut as the reference is."""
        return self.parts[start]


class _Reference:
    """The distribution that rows are compared with, prepared once per batch for some of its tokens."""

    def __init__(self, log_probabilities: Float[Tensor, "tokens vocabulary"]) -> None:
        self.probabilities = log_probabilities.exp()
        self.favourite = log_probabilities.argmax(1)
        self.negative_entropy = (self.probabilities * log_probabilities).sum(1)

    def compared(self, predicted: Float[Tensor, "tokens vocabulary"]) -> Float[Tensor, "3 tokens"]:
        """Nats of KL, whether the favourite is the same, and 1."""
        nats = self.divergence(predicted)
        return torch.stack([nats, self.agreement(predicted), torch.ones_like(nats)])

    def divergence(self, predicted: Float[Tensor, "tokens vocabulary"]) -> Float[Tensor, " tokens"]:
        """KL(reference ‖ predicted) in nats."""
        return self.negative_entropy - torch.linalg.vecdot(self.probabilities, predicted)

    def agreement(self, predicted: Float[Tensor, "tokens vocabulary"]) -> Float[Tensor, " tokens"]:
        return (self.favourite == predicted.argmax(1)).float()


def _log_probabilities(
    logits: Float[Tensor, "batch context logits"], vocabulary: int
) -> Iterator[Float[Tensor, "_ vocabulary"]]:
    """Log-probabilities of all predicted tokens, some tokens at a time: whole windows, or parts of one that fill CACHED bytes."""
    context = logits.shape[1] - 1
    if (logits.shape[0] * context * vocabulary * 4 <= 2 * CACHED) or not context:
        yield logits[:, :-1, :vocabulary].float().log_softmax(-1).flatten(0, 1)
        return
    some = max(1, CACHED // (4 * vocabulary))
    for window in logits:
        for part in window[:-1].split(some):
            yield part[:, :vocabulary].float().log_softmax(-1)
