"""What tables know beyond the text that they were fitted on: losses by whether that text has the same n-gram."""

from dataclasses import dataclass

import torch

from stitch.conversions.donor import Donor
from stitch.conversions.ngrams.late import LateBlocks
from stitch.conversions.ngrams.leakage import LeakageAudit, audit_leakage, require_apart
from stitch.conversions.ngrams.memory import NgramShape
from stitch.evaluation.scores import evaluate, whole_model
from stitch.progress import Progress
from stitch.text.windows import Windows
from stitch.translation.types import Translation


def audited_leakage(donor: Donor, shape: NgramShape) -> LeakageAudit:
    """The overlap of the report split with the fit split. Raises UsageError if it is too large."""
    found = audit_leakage(donor.windows["fit"], donor.windows["report"], shape.order, donor.model.vocabulary)
    require_apart(found)
    return found


@dataclass(frozen=True)
class SubsetLoss:
    """Cross-entropies of donor and converted model on a subset of the reported tokens, in nats."""

    tokens: int
    donor: float
    converted: float


def loss_by_leakage(
    donor: Donor,
    site: int,
    translation: Translation,
    audit: LeakageAudit,
    memory: int,
    progress: Progress | None = None,
) -> dict[str, SubsetLoss]:
    """Cross-entropies after tokens whose longest n-gram is in the fit text, is not in it, or that are outside copied runs."""
    report = donor.windows["report"]
    kind = audit.known.int() + 2 * audit.copied.int()
    predicting = torch.zeros_like(kind)
    predicting[:, 1:] = kind[:, :-1]  # `Windows.document` labels predicted tokens; `kind` is that of the token before
    rows = {"donor": whole_model(donor.model.net), "converted": LateBlocks(donor.model, site).reading(translation)}
    scores = evaluate(
        rows, Windows(report.ids, predicting), vocabulary=donor.model.vocabulary, memory=memory, progress=progress,
        task="copied text (tokens)",
    )  # fmt: skip

    def over(kinds: list[int]) -> SubsetLoss:
        kinds = [one for one in kinds if one < len(scores["donor"].tokens)]
        predicted = scores["donor"].tokens[kinds].sum()
        nats = {name: float(found.nats[kinds].sum() / predicted.clamp_min(1)) for name, found in scores.items()}
        return SubsetLoss(int(predicted), nats["donor"], nats["converted"])

    return {"seen": over([1, 3]), "unseen": over([0, 2]), "not copied": over([0, 1])}
