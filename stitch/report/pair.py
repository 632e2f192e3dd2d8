"""report.json of a stitch of two models: scores, costs, SAEs, matching, differences, provenance."""

import dataclasses
from dataclasses import dataclass

import numpy as np

from sae.schedule import FEATURES_PER_WIDTH
from sae.types import Dictionary
from stitch.composite.costs import Cost, Costs
from stitch.composite.surgery import Bridge, described
from stitch.config import CompleteSettings
from stitch.evaluation.comparisons import against_line, differences, line, ranked, verdict
from stitch.evaluation.documents import counted
from stitch.evaluation.row_costs import seam_costs
from stitch.evaluation.scores import Scores
from stitch.features.matching import Matching
from stitch.features.saes import SAEs
from stitch.models.model import Model
from stitch.models.provenance import described_sae, provenance
from stitch.models.sources import Source
from stitch.text.documents import Split
from stitch.text.windows import Windows
from stitch.translation import rows
from stitch.translation.fit import Fitted
from stitch.translation.types import Translation


@dataclass(frozen=True, kw_only=True)
class Joined:
    """What a stitch computed, as far as its report needs it.

    `chosen` is the row name of the translation in the composite, `written` that translation within the seam's bytes.

    `sae_notes` say what cannot be told of given SAEs; `alternatives` says in words what the rows of alternatives are;
    `costs` has the cost of every row.
    """

    a: Model
    b: Model
    sources: dict[str, Source]
    windows: dict[Split, Windows]
    saes: SAEs
    matching: Matching
    fitted: Fitted
    bridges: dict[str, Bridge]
    chosen: str
    written: Translation
    scores: dict[str, Scores]
    alternatives: dict[str, str]
    sae_notes: list[str]
    costs: dict[str, Cost]
    pair_costs: Costs


def pair_report(settings: CompleteSettings, found: Joined) -> dict:
    """report.json, with the timings still to be filled in."""
    yardstick = line(found.pair_costs, *settings.sites, found.written, found.scores)
    results = _results(settings.sites, found)
    return {
        "verdict": verdict(found.scores, found.costs),
        "alternatives": found.alternatives,
        "models": {"a": found.a.name, "b": found.b.name},
        "site": {"a": settings.layer, "b": settings.layer_b},
        "tokens": {split: windows.tokens for split, windows in found.windows.items()},
        "documents": counted(found.scores["b"]),
        "saes": _saes(settings, found.saes, found.scores),
        "sae_notes": found.sae_notes,
        "matching": _matching(settings.matching, found.matching, len(found.fitted.shuffles)),
        "ridge": {**_ridges(found.fitted), **described(found.bridges)},
        "similarity": found.fitted.similarity,
        "results": [*results[:3], yardstick, *results[3:]],  # after a, b and the composite
        "differences": [
            against_line(found.scores, yardstick["share"]),
            *differences(found.scores, rows.compared_with()),
        ],
        "left_out": list(found.fitted.left_out),
        "chosen": found.chosen.partition(":")[2],
        "seconds": {},
        "provenance": {
            **provenance(settings.to_dict(), found.a, found.b, found.sources),
            **found.windows["fit"].provenance,
            "saes": _given_saes(settings, found),
        },
    }


def _given_saes(settings: CompleteSettings, found: Joined) -> list[dict]:
    """The SAEs that were given, and whether numbers from their weights are in the composite."""
    return [
        {
            **described_sae(given),
            "of": f"{model.name} at resid_pre.{site}",
            "inside": side in rows.row(found.chosen).saes,
        }
        for side, given, model, site in (
            ("a", settings.sae_a, found.a, settings.layer),
            ("b", settings.sae_b, found.b, settings.layer_b),
        )
        if given is not None
    ]


def _ridges(fitted: Fitted) -> dict[str, dict]:
    """Of each ridge: its λ, the held-out share of variance it leaves unexplained, and what each input contributes."""
    return {
        name: {
            "lambda": ridge.strength,
            "lambda_of_lift": ridge.strength_apart,
            "unexplained": ridge.unexplained,
            "shares": fitted.shares[name],
        }
        for name, ridge in fitted.ridges.items()
    }


def _results(sites: tuple[int, int], found: Joined) -> list[dict]:
    """A dict per row: scores and costs; of translations also the cost of the seam alone and the distance to the line."""
    translations = {"composite": found.written, **found.fitted.translations}
    seams = seam_costs(found.pair_costs, sites[0], {**translations, **found.fitted.nulls})
    results = []
    for name in ranked(found.scores):
        if name == "sae-a":
            continue
        row = {**found.scores[name].row(name), **found.costs[name].to_dict()}
        if name in seams:
            row["seam"] = seams[name].to_dict()
        if name in translations:
            row["above_line"] = row["ce"] - line(found.pair_costs, *sites, translations[name], found.scores)["ce"]
        results.append(row)
    return results


def _saes(settings: CompleteSettings, saes: SAEs, scores: dict[str, Scores]) -> list[dict]:
    """Of each SAE: size, quality, and the cross-entropy of its model with the reconstruction in place of the stream.

    Where the text was too short for the default number of features, also that number.
    """
    return [
        {
            "site": f"{side}: resid_pre.{site}",
            "features": dictionary.encoder.shape[1],
            **_cut_from(settings.features, given, dictionary),
            "architecture": config.architecture if given is None else given,
            **dataclasses.asdict(quality),
            "spliced_ce": scores[row].ce,
        }
        for side, site, dictionary, quality, config, given, row in (
            ("a", settings.layer, saes.a, saes.quality_a, saes.config_a, settings.sae_a, "sae-a"),
            ("b", settings.layer_b, saes.b, saes.quality_b, saes.config_b, settings.sae_b, "ceiling:sae-b"),
        )
    ]


def _cut_from(asked: int | None, given: str | None, dictionary: Dictionary) -> dict[str, int]:
    width, features = dictionary.encoder.shape
    is_cut = asked is None and given is None and features < FEATURES_PER_WIDTH * width
    return {"features_cut_from": FEATURES_PER_WIDTH * width} if is_cut else {}


def _matching(method: str, matching: Matching, shuffles: int) -> dict:
    """Number of matched pairs, their correlations beside those of the random control, the certified gap to the optimum,
    and the draws of its null."""
    pairs = matching.pairs
    scores, nulls = (pairs.scores, pairs.null_scores) if len(pairs) else (np.zeros(1), np.zeros(1))
    return {
        "method": method,
        "pairs": len(pairs),
        "mean_score": float(scores.mean()),
        "null_mean_score": float(nulls.mean()),
        "above_0.7": float((scores > 0.7).mean()),
        "gap": matching.certificate.gap,
        "shuffles": shuffles,
    }
