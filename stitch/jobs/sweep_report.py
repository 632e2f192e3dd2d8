"""report.json of a sweep: every composite, the best layers and the Pareto fronts, from scores and costs."""

from dataclasses import dataclass

from stitch.composite.costs import Cost, Costs
from stitch.evaluation.scores import Scores
from stitch.layers.cells import Cell, CellRow, ScoredCells, Side
from stitch.layers.choose import RULE, best_layer, eligible
from stitch.layers.pareto import front
from stitch.models.model import Model

MARGIN = 1e-4  # nats; a composite that runs the whole target differs from it by rounding alone


@dataclass(frozen=True)
class Rival:
    """One model with its first blocks as tables, and its scores by split."""

    side: Side
    made: str
    cost: Cost
    scores: dict[str, Scores]


def sweep_report(
    models: dict[Side, Model],
    context: int,
    found: ScoredCells,
    donors: dict[str, dict[str, Scores]],
    rivals: list[Rival],
) -> dict:
    """The part of report.json that follows from the scores: cells, best layers, fronts."""
    costs: dict[Side, Costs] = {
        "a": Costs(models["a"], models["b"], context),
        "b": Costs(models["b"], models["a"], context),
    }
    whole: dict[Side, dict] = {
        side: {
            **_numbers(donors[side]),
            **costs[side].whole_source.to_dict(),
        }
        for side in costs
    }
    alternatives = [
        {"model": one.side, "made": one.made, **_numbers(one.scores), **one.cost.to_dict()} for one in rivals
    ]
    known = [*({"model": side, "made": models[side].name, **one} for side, one in whole.items()), *alternatives]
    cells = [_cell(cell, rows, found, costs[cell.source], whole) for cell, rows in found.rows.items()]
    for cell in cells:
        cell["rival"] = _rival(cell, known)
    return {
        "models": {side: model.name for side, model in models.items()},
        "depth": {side: model.depth for side, model in models.items()},
        "context": context,
        "donors": whole,
        "alternatives": alternatives,
        "cells": cells,
        "rule": RULE,
        "best_layers": _best_layers(cells, costs),
        "fronts": {cost: _front(cells, known, cost) for cost in ("flops", "bytes")},
    }


def _cell(cell: Cell, rows: dict[str, CellRow], found: ScoredCells, costs: Costs, donors: dict) -> dict:
    flops = costs.joined(cell.i, cell.j, rows["affine"].seam).flops
    share = costs.share(cell.i, cell.j, flops)
    source, target = donors[cell.source]["ce"], donors[cell.target]["ce"]
    translations = {
        name: {
            **_numbers(row.scores),
            **costs.joined(cell.i, cell.j, row.seam).to_dict(),
            "lambda": row.strength,
            "unexplained": row.unexplained,
        }
        for name, row in rows.items()
    }
    return {
        "source": cell.source,
        "target": cell.target,
        "i": cell.i,
        "j": cell.j,
        "flops": flops,
        "share": share,
        "line": source + share * (target - source),
        "chosen": min(translations, key=lambda name: translations[name]["sweep_ce"]),
        "translations": translations,
        "null": _numbers(found.nulls[cell.target, cell.j].scores),
    }


def _numbers(scores: dict[str, Scores]) -> dict:
    """The scores on the report split, and the cross-entropy on the sweep split, by which choices are made."""
    shown = scores["report"]
    low, high = shown.interval()
    kl = None if shown.kl is None else float(shown.kl.sum() / shown.tokens.sum())
    return {"ce": shown.ce, "ce_low": low, "ce_high": high, "kl_to_target": kl, "sweep_ce": scores["sweep"].ce}


def _rival(cell: dict, known: list[dict]) -> dict | None:
    """The alternative with no more FLOPs that is best on the sweep split; None where all cost more."""
    affordable = [one for one in known if one["flops"] <= cell["flops"]]
    if not affordable:
        return None
    best = min(affordable, key=lambda one: one["sweep_ce"])
    return {key: best[key] for key in ("made", "ce", "flops", "bytes")}


def _best_layers(cells: list[dict], costs: dict[Side, Costs]) -> list[dict]:
    """The cell that `RULE` chooses for every number of early blocks, in both directions."""
    at = {(cell["source"], cell["i"], cell["j"]): cell for cell in cells}
    best = []
    for side, one in costs.items():
        if (side, 1, 1) not in at:  # both models are the same: one direction
            continue
        for i in range(1, one.source.depth + 1):
            flops = eligible(one, i)
            ce = {j: _chosen(at[side, i, j])["sweep_ce"] for j in flops}
            cell = at[side, i, best_layer(flops, ce, one.costlier_donor)]
            best.append(
                {
                    **{key: cell[key] for key in ("source", "target", "i", "j", "flops", "line")},
                    "translation": cell["chosen"],
                    **{key: _chosen(cell)[key] for key in ("ce", "ce_low", "ce_high", "parameters", "bytes")},
                    "within_budget": cell["flops"] <= one.costlier_donor,
                }
            )
    return best


def _chosen(cell: dict) -> dict:
    return cell["translations"][cell["chosen"]]


def _front(cells: list[dict], known: list[dict], cost: str) -> list[dict]:
    """Pareto front of cost and cross-entropy over both models, these with tables in the place of their first blocks, and every
    composite. "up_to" is the cost of the next point."""
    keys = ("ce", "ce_low", "ce_high", "sweep_ce", "flops", "parameters", "bytes")
    points = [{key: one[key] for key in ("model", "made", *keys)} for one in known]
    for cell in cells:
        for name, row in cell["translations"].items():
            points.append(
                {
                    "model": "composite",
                    **{key: cell[key] for key in ("source", "target", "i", "j")},
                    "translation": name,
                    **{key: row[key] for key in keys},
                }
            )
    kept = [points[index] for index in front([(float(point[cost]), point["sweep_ce"]) for point in points], MARGIN)]
    ends = [point[cost] for point in kept[1:]]
    return [{**point, "up_to": end} for point, end in zip(kept, [*ends, None], strict=True)]
