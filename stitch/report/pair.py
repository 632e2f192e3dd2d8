"""report.json of a stitch of two models: scores, costs, SAEs, matching, differences, provenance."""

import dataclasses

import numpy as np

from stitch.composite.costs import Costs
from stitch.composite.surgery import Bridge, described
from stitch.config import CompleteSettings
from stitch.evaluation.comparisons import against_line, differences, line, ranked
from stitch.evaluation.scores import Scores
from stitch.features.matching import Matching
from stitch.features.saes import SAEs
from stitch.models.model import Model
from stitch.models.provenance import provenance
from stitch.models.sources import Source
from stitch.text.documents import Split
from stitch.text.windows import Windows
from stitch.translation.fit import Fitted
from stitch.translation.rows import compared_with


def pair_report(
    settings: CompleteSettings,
    a: Model,
    b: Model,
    sources: dict[str, Source],
    windows: dict[Split, Windows],
    saes: SAEs,
    matching: Matching,
    fitted: Fitted,
    bridges: dict[str, Bridge],
    chosen: str,
    scores: dict[str, Scores],
) -> dict:
    """report.json, timings aside."""
    sites = settings.sites
    costs = Costs(a, b, settings.context)
    yardstick = line(costs, *sites, fitted.translations[chosen], scores)
    results = _results(costs, sites, fitted, chosen, scores)
    return {
        "models": {"a": a.name, "b": b.name},
        "site": {"a": settings.layer, "b": settings.layer_b},
        "tokens": {split: found.tokens for split, found in windows.items()},
        "saes": _saes(settings, saes, scores),
        "matching": _matching(settings.matching, matching),
        "ridge": {
            **{
                name: {
                    "lambda": found.strength,
                    "lambda_of_lift": found.strength_apart,
                    "unexplained": found.unexplained,
                    "shares": fitted.shares[name],
                }
                for name, found in fitted.ridges.items()
            },
            **described(bridges),
        },
        "similarity": fitted.similarity,
        "results": [*results[:3], yardstick, *results[3:]],  # after a, b and the composite
        "differences": [
            against_line(scores, yardstick["share"]),
            *differences(scores, compared_with()),
        ],
        "left_out": list(fitted.left_out),
        "chosen": chosen.partition(":")[2],
        "seconds": {},
        "provenance": provenance(settings.to_dict(), a, b, sources),
    }


def _results(
    costs: Costs, sites: tuple[int, int], fitted: Fitted, chosen: str, scores: dict[str, Scores]
) -> list[dict]:
    """A dict per row, with what a translation costs; each translation has its own line, a costlier one a lower."""
    translations = {"composite": fitted.translations[chosen], **fitted.translations}
    results = [scores[name].row(name) for name in ranked(scores) if name != "sae-a"]
    for row in results:
        if (found := translations.get(row["name"]) or fitted.nulls.get(row["name"])) is not None:
            row |= {"multiply_adds": found.multiply_adds, "parameters": found.parameters}
        if (found := translations.get(row["name"])) is not None:
            row["above_line"] = row["ce"] - line(costs, *sites, found, scores)["ce"]
    return results


def _saes(settings: CompleteSettings, saes: SAEs, scores: dict[str, Scores]) -> list[dict]:
    """Of each SAE: size, how well it reconstructs, and the cross-entropy of its model with it spliced in."""
    return [
        {
            "site": f"{side}: resid_pre.{site}",
            "features": dictionary.encoder.shape[1],
            "architecture": config.architecture if given is None else given,
            **dataclasses.asdict(quality),
            "spliced_ce": scores[row].ce,
        }
        for side, site, dictionary, quality, config, given, row in (
            ("a", settings.layer, saes.a, saes.quality_a, saes.config_a, settings.sae_a, "sae-a"),
            ("b", settings.layer_b, saes.b, saes.quality_b, saes.config_b, settings.sae_b, "ceiling:sae-b"),
        )
    ]


def _matching(method: str, matching: Matching) -> dict:
    """How many pairs, and how well they fit."""
    pairs = matching.pairs
    scores, nulls = (pairs.scores, pairs.null_scores) if len(pairs) else (np.zeros(1), np.zeros(1))
    return {
        "method": method,
        "pairs": len(pairs),
        "mean_score": float(scores.mean()),
        "null_mean_score": float(nulls.mean()),
        "above_0.7": float((scores > 0.7).mean()),
        "gap": matching.certificate.gap,
    }
