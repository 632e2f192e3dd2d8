"""What a composite loses at tokens that did not occur in the text its tables are of: they get a fall-back in place of a row.

The sums are those by `Bins.of_read`, kept while the rows of the report are scored.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stitch.evaluation.bins import Bins
from stitch.evaluation.scores import Scores
from stitch.text.windows import Windows
from stitch.translation.packed import Packed
from stitch.translation.types import Term, Token, Translation
from stitch.translation.unfolded import factors_of

MEAN_ROW = "mean_row"  # the composite with mean rows in place of its fall-backs, as a row that is scored


def ids_with_row(translation: Translation) -> Int[Tensor, " ids"] | None:
    """The tokens that have a row; None where all have one or the translation has no fall-back."""
    for term in translation.terms:
        if isinstance(term.input, Token) and not term.input.back and term.fallback is not None:
            return term.input.keys
    return None


def loss_at_unseen(
    bins: Bins,
    scores: Mapping[str, Scores],
    windows: Windows,
    counted: Bool[Tensor, " vocabulary"] | None,
    comparable: bool,
) -> dict | None:
    """Cross-entropy, in nats, of predictions made at tokens without a row and at all others.

    They are those of B, where its predictions are `comparable`, of the composite, and of `MEAN_ROW`. None where every token of
    the text has a row.
    """
    if bins.of_read is None:
        return None
    targets = windows.ids[:, 1:].flatten().long()
    ones = torch.ones(len(targets)) if counted is None else counted[targets].float()
    with_rows, without = bins.sums(windows.ids, torch.zeros_like(targets), ones, 1)[bins.named :, 0].tolist()
    if not without:
        return None
    rows = {**({"b": "b"} if comparable else {}), "fallback": "composite", "mean_row": MEAN_ROW}
    nats = {}
    for name, row in rows.items():
        binned = scores[row].binned
        assert binned is not None, f"{row} is scored on all text"
        nats[name] = binned[bins.named :].sum(1).tolist()
    return {
        "tokens_without_rows": int(without), "tokens": int(with_rows + without),
        "ce_without_rows": {name: at_others / without for name, (_, at_others) in nats.items()},
        "ce_with_rows": {name: at_rows / with_rows for name, (at_rows, _) in nats.items()},
    }  # fmt: skip


def with_mean_rows(translation: Translation) -> Translation:
    terms = tuple(
        replace(term, fallback=term.fallback.always(_mean_row(term))) if term.fallback is not None else term
        for term in translation.terms
    )
    return replace(translation, terms=terms)


def _mean_row(term: Term) -> Float[Tensor, " d_out"]:
    if isinstance(term.weight, Packed):
        return term.weight.rows(torch.arange(len(term.weight))).mean(0)
    assert term.weight is not None
    means = ((rows.mean(0, dtype=torch.float64).cpu(), weight) for rows, weight in factors_of(term.weight))
    return sum(
        (mean if weight is None else mean @ weight.double().cpu() for mean, weight in means), torch.tensor(0.0)
    ).float()
