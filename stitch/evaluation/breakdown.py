"""Cross-entropy by how many tokens a model has read, and by how frequent the predicted token is.

The sums per bin are kept while rows are scored (`evaluate`), so that they cost no further pass over the text.
"""

from collections.abc import Iterable, Mapping
from math import isfinite

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stitch.evaluation.bins import Bins
from stitch.evaluation.intervals import ratio_interval
from stitch.evaluation.scores import Scores
from stitch.text.windows import Windows


def breakdown(
    bins: Bins,
    scores: Mapping[str, Scores],
    names: Iterable[str],
    windows: Windows,
    counted: Bool[Tensor, " vocabulary"] | None = None,
) -> dict:
    """`breakdown` of report.json: for position and frequency a list of bins, each with its number of tokens and, for each of
    `names`, which include the composite, cross-entropy in nats per token with a 95 % interval over documents, and that of the
    paired difference to the composite. Bins without tokens are left out.

    `counted` says of which tokens predictions count, as in `evaluate`. The ends of an interval are None where a bin has tokens of
    one document only.
    """
    owner = windows.document[:, 1:].flatten().long()
    documents = int(windows.document.max()) + 1
    ones = torch.ones(len(owner)) if counted is None else counted[windows.ids[:, 1:].flatten().long()].float()
    tokens = bins.sums(windows.ids, owner, ones, documents)
    nats = {name: binned for name in names if (binned := scores[name].binned) is not None}
    found = []
    for number, label in enumerate([*bins.positions, *bins.frequencies]):
        if count := int(tokens[number].sum()):
            rows = {name: _mean(nats[name][number], tokens[number]) for name in nats}
            for name in nats.keys() - {"composite"}:
                rows[name]["minus_composite"] = _mean(nats[name][number] - nats["composite"][number], tokens[number])
            found.append((number, {"bin": label, "tokens": count, "rows": rows}))
    split = len(bins.positions)
    return {
        "position": [one for number, one in found if number < split],
        "frequency": [one for number, one in found if number >= split],
    }


def _mean(nats: Float[Tensor, " documents"], tokens: Float[Tensor, " documents"]) -> dict:
    ends = [end if isfinite(end) else None for end in ratio_interval(nats, tokens)]
    return {"ce": float(nats.sum() / tokens.sum()), "ce_low": ends[0], "ce_high": ends[1]}
