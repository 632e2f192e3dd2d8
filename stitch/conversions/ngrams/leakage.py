"""Leakage: how much of the report split also occurs in the text that tables were fitted on."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int, Int64
from torch import Tensor

from stitch.errors import UsageError
from stitch.modeling.modeling_translation import ngram_keys
from stitch.text.windows import Windows

RUN = 32  # tokens: a run of this length that occurs in both texts counts as copied
TOLERATED = 0.1  # share of copied tokens that is accepted: licences and quoted code occur in many files
BASE = 6_364_136_223_846_793_005  # of the polynomial hash of runs, modulo 2⁶⁴


@dataclass(frozen=True)
class LeakageAudit:
    """Which reported tokens are in a copied run (`copied`) and which end an n-gram of the highest order that occurs in the fit
    text (`known`); by order, the share of tokens whose n-gram occurs there (`seen`). Shares leave out a window's BOS."""

    copied: Bool[Tensor, "windows context"]
    known: Bool[Tensor, "windows context"]
    seen: dict[int, float]

    @property
    def share_copied(self) -> float:
        return float(self.copied[:, 1:].float().mean())


def audit_leakage(fit: Windows, report: Windows, order: int, vocabulary: int) -> LeakageAudit:
    """Compares `report` with `fit`, for n-grams up to `order`."""
    known = {n: _occurs(report.ids, fit.ids, n, vocabulary) for n in range(1, order + 1)}
    shares = {n: float(found[:, 1:].float().mean()) for n, found in known.items()}
    return LeakageAudit(copies(fit.ids, report.ids), known[order], shares)


def require_apart(found: LeakageAudit) -> None:
    """Raises UsageError if more than TOLERATED of the reported tokens are in runs that the fit text has too."""
    if found.share_copied > TOLERATED:
        raise UsageError(
            f"text must have a report split with at most {TOLERATED:.0%} of tokens in runs of {RUN} tokens that the fit split "
            f"has too; got {found.share_copied:.1%}: remove copied passages."
        )


def copies(
    fit: Int[Tensor, "windows context"], report: Int[Tensor, "others context"]
) -> Bool[Tensor, "others context"]:
    """Which tokens of `report` are in a run of RUN tokens that `fit` has too. A window's BOS is in no run."""
    marked = torch.zeros(report.shape, dtype=torch.bool)
    if report.shape[1] - 1 < RUN:
        return marked
    known = _runs(fit).unique()
    runs = _runs(report)
    place = torch.searchsorted(known, runs).clamp_max(len(known) - 1)
    for window, start in (known[place] == runs).nonzero().tolist():
        marked[window, 1 + start : 1 + start + RUN] = True
    return marked


def _runs(ids: Int[Tensor, "windows context"]) -> Int64[Tensor, "windows runs"]:
    """Hashes of all runs of RUN tokens within a window."""
    own = ids[:, 1:].long() + 1
    length = own.shape[1] - RUN + 1
    total = torch.zeros(len(own), length, dtype=torch.int64)
    for step in range(RUN):
        total = total * BASE + own[:, step : step + length]  # wraps around
    return total


def _occurs(report: Tensor, fit: Tensor, order: int, vocabulary: int) -> Tensor:
    known = _keys(fit, order, vocabulary).unique()
    keys = _keys(report, order, vocabulary)
    place = torch.searchsorted(known, keys).clamp_max(len(known) - 1)
    found = torch.zeros(report.shape, dtype=torch.bool)
    found[:, order - 1 :] = known[place] == keys
    return found


def _keys(ids: Tensor, order: int, vocabulary: int) -> Tensor:
    length = ids.shape[1]
    return ngram_keys([ids.long()[:, order - 1 - back : length - back] for back in range(order)], vocabulary)
