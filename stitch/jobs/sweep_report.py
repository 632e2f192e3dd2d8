"""report.json of a sweep: every composite, the best layers and the Pareto fronts, from scores and costs."""

from stitch.composite.costs import Costs, whole_parameters
from stitch.evaluation.scores import Scores
from stitch.layers.cells import Cell, CellRow, ScoredCells, Side
from stitch.layers.choose import RULE, best_layer, eligible
from stitch.layers.pareto import front
from stitch.models.model import Model

MARGIN = 1e-4  # nats; a composite that runs the whole target differs from it by rounding alone


def sweep_report(
    models: dict[Side, Model], context: int, found: ScoredCells, donors: dict[str, dict[str, Scores]]
) -> dict:
    """The part of report.json that follows from the scores: cells, best layers, fronts."""
    costs = {
        "a": Costs(models["a"], models["b"], context),
        "b": Costs(models["b"], models["a"], context),
    }
    whole = {
        side: {
            **_numbers(donors[side]),
            "flops": sum(costs[side].source_blocks),
            "parameters": whole_parameters(model.net),
        }
        for side, model in models.items()
    }
    cells = [_cell(cell, rows, found, costs[cell.source], whole) for cell, rows in found.rows.items()]
    return {
        "models": {side: model.name for side, model in models.items()},
        "depth": {side: model.depth for side, model in models.items()},
        "context": context,
        "donors": whole,
        "cells": cells,
        "rule": RULE,
        "best_layers": _best_layers(cells, costs),
        "fronts": {cost: _front(cells, whole, cost) for cost in ("flops", "parameters")},
    }


def _cell(cell: Cell, rows: dict[str, CellRow], found: ScoredCells, costs: Costs, donors: dict) -> dict:
    flops = costs.flops(cell.i, cell.j, rows["affine"].multiply_adds)
    share = costs.share(cell.i, cell.j, flops)
    source, target = donors[cell.source]["ce"], donors[cell.target]["ce"]
    translations = {
        name: {
            **_numbers(row.scores),
            "parameters": costs.parameters(cell.i, cell.j, row.parameters),
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


def _best_layers(cells: list[dict], costs: dict[str, Costs]) -> list[dict]:
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
                    **{key: _chosen(cell)[key] for key in ("ce", "ce_low", "ce_high", "parameters")},
                    "within_budget": cell["flops"] <= one.costlier_donor,
                }
            )
    return best


def _chosen(cell: dict) -> dict:
    return cell["translations"][cell["chosen"]]


def _front(cells: list[dict], donors: dict, cost: str) -> list[dict]:
    """Pareto front of cost and cross-entropy over both models and every composite. "up_to" is the cost of the next point."""
    keys = ("ce", "ce_low", "ce_high", "sweep_ce")
    points = [
        {"model": side, **{key: one[key] for key in (*keys, "flops", "parameters")}} for side, one in donors.items()
    ]
    for cell in cells:
        for name, row in cell["translations"].items():
            points.append(
                {
                    "model": "composite",
                    **{key: cell[key] for key in ("source", "target", "i", "j", "flops")},
                    "translation": name,
                    **{key: row[key] for key in (*keys, "parameters")},
                }
            )
    kept = [points[index] for index in front([(float(point[cost]), point["sweep_ce"]) for point in points], MARGIN)]
    ends = [point[cost] for point in kept[1:]]
    return [{**point, "up_to": end} for point, end in zip(kept, [*ends, None], strict=True)]
