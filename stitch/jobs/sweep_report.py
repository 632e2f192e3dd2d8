"""report.json of a sweep: every composite, the best layers and the Pareto fronts, from scores and costs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from stitch.composite.costs import Cost, Costs
from stitch.evaluation.scores import Scores
from stitch.jobs.sweep_rivals import Rival
from stitch.layers.cells import CellRow, ScoredCells
from stitch.layers.choose import RULE, best_layer, eligible
from stitch.layers.pareto import front
from stitch.layers.streams import Cell, Side
from stitch.models.model import Model

ANY = 2**62  # bytes
MARGIN = 1e-4  # nats; a composite that runs the whole target differs from it by rounding, unless tokens have no row


def sweep_report(
    models: dict[Side, Model],
    context: int,
    found: ScoredCells,
    whole: dict[Side, Rival],
    alternatives: Sequence[Rival],
) -> dict:
    """The part of report.json that follows from the scores: cells, best layers, fronts."""
    costs: dict[Side, Costs] = {
        "a": Costs(models["a"], models["b"], context),
        "b": Costs(models["b"], models["a"], context),
    }
    rivals = [*whole.values(), *alternatives]
    composites = {cell: rows for cell, rows in found.rows.items() if cell.source != cell.target}
    cells = [_cell(cell, rows, found, costs[cell.source], whole, rivals) for cell, rows in composites.items()]
    known = [_alone(one) for one in rivals]
    return {
        "models": {side: model.name for side, model in models.items()},
        "depth": {side: model.depth for side, model in models.items()},
        "context": context,
        "donors": {side: {**_numbers(one.scores), **one.cost.to_dict()} for side, one in whole.items()},
        "alternatives": [one for one in known if one["kind"] != "whole"],
        "cells": cells,
        "rule": RULE,
        "best_layers": _best_layers(cells, costs),
        "fronts": {cost: _front(cells, known, cost) for cost in ("flops", "bytes")},
    }


def _alone(one: Rival) -> dict:
    return {
        "model": one.side,
        "kind": one.kind,
        "made": one.made,
        **_numbers(one.scores),
        **one.cost.to_dict(),
    }


def _cell(
    cell: Cell,
    rows: dict[str, CellRow],
    found: ScoredCells,
    costs: Costs,
    whole: Mapping[Side, Rival],
    rivals: Sequence[Rival],
) -> dict:
    paid = {name: costs.joined(cell.i, cell.j, row.seam) for name, row in rows.items()}
    flops = paid["affine"].flops
    share = costs.share(cell.i, cell.j, flops)
    source, target = (whole[side].scores["report"].ce for side in (cell.source, cell.target))
    translations = {
        name: {
            **_numbers(row.scores),
            **paid[name].to_dict(),
            "lambda": row.strength,
            "unexplained": row.unexplained,
        }
        for name, row in rows.items()
    }
    chosen = min(translations, key=lambda name: translations[name]["sweep_ce"])
    return {
        "source": cell.source,
        "target": cell.target,
        "i": cell.i,
        "j": cell.j,
        "flops": flops,
        "share": share,
        "line": source + share * (target - source),
        "chosen": chosen,
        "translations": translations,
        "null": _numbers(found.nulls[cell.target, cell.j].scores),
        "rival": _best(rows[chosen].scores, replace(paid[chosen], bytes=ANY), rivals),
        "rival_within_bytes": _best(rows[chosen].scores, paid[chosen], rivals),
        "rival_without_tables": _best(
            rows[chosen].scores, paid[chosen], [one for one in rivals if one.kind != "tables"]
        ),
    }


def _numbers(scores: dict[str, Scores]) -> dict:
    """The scores on the report split, and the cross-entropy on the sweep split, by which choices are made."""
    shown = scores["report"]
    low, high = shown.interval()
    kl = None if shown.kl is None else float(shown.kl.sum() / shown.tokens.sum())
    return {"ce": shown.ce, "ce_low": low, "ce_high": high, "kl_to_target": kl, "sweep_ce": scores["sweep"].ce}


def _best(scores: dict[str, Scores], cost: Cost, rivals: Sequence[Rival]) -> dict | None:
    """The alternative within `cost` that is best on the sweep split, and how far `scores` are above it, with the paired interval.

    None where all cost more.
    """
    affordable = [one for one in rivals if one.cost.within(cost)]
    if not affordable:
        return None
    best = min(affordable, key=lambda one: one.scores["sweep"].ce)
    mine, other = scores["report"], best.scores["report"]
    return {
        "made": best.made,
        "ce": other.ce,
        "flops": best.cost.flops,
        "bytes": best.cost.bytes,
        **mine.difference(other, "above"),
    }


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
    """Pareto front of cost and cross-entropy over both models, the alternatives, and every composite. "up_to" is the cost of the
    next point."""
    keys = ("ce", "ce_low", "ce_high", "sweep_ce", "flops", "parameters", "bytes", "bytes_read")
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
