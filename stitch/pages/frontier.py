"""Cross-entropy against a cost: what can be had for how much."""

from collections.abc import Sequence

from stitch.pages.chart import FLUID, GREY, Chart, axis, colour, roles_in, rule_at, shape, tips

COSTS = {"flops": "MFLOP per token", "bytes": "MB on disk"}
MILLION = 1e6
HEIGHT = 300
ABOVE = 0.5  # nats; rows further above the worst model or composite than this are left out, so that the others can be told apart


def frontier(
    name: str,
    rows: Sequence[dict],
    cost: str,
    front: Sequence[dict] | None = None,
    *,
    limit: float | None = None,
    size: int = 80,
) -> Chart:
    """`rows` with {"label", "role", "value", "flops", "bytes"} by one of COSTS, and the `front`: of each budget, the best.

    Without a `front` it is that of both models and their alternatives. A row with a "short" name has it beside its point, if it
    is on the front or neither a baseline nor an alternative. `limit` is a cost to mark, such as the composite's.
    """
    what = COSTS[cost]
    known = [row["value"] for row in rows if row["role"] in ("a", "b") or row["label"] == "composite"]
    ceiling = max(known) + ABOVE
    points = [{"short": "", **row, "cost": row[cost] / MILLION} for row in rows if row["value"] <= ceiling]
    dropped = len(rows) - len(points)
    if front is None:
        line = best_for_every_budget([point for point in points if point["role"] in ("a", "b", "alternative")])
    else:
        line = [{"value": one["value"], "cost": one[cost] / MILLION} for one in front if one["value"] <= ceiling]
    for point in points:
        point["named"] = point["short"] and (point in line or point["role"] in ("a", "b", "composite"))
    roles = roles_in(points)
    steps = {
        "data": {"values": line},
        "mark": {"type": "line", "interpolate": "step-after", "strokeWidth": 1.5, "color": GREY},
        "encoding": {"color": None, "tooltip": None, "order": {"field": "cost", "type": "quantitative"}},
    }
    spec = {
        "data": {"values": points},
        **FLUID,
        "height": HEIGHT,
        "encoding": {
            "x": axis("cost", what, scale={"type": "log", "nice": False, "padding": 12}),
            "y": axis("value", "cross-entropy, nats per token", scale={"padding": 8}),
            **colour(roles),
            "tooltip": tips(("label", "row", ""), ("value", "nats", ".4f"), ("cost", what, ".3f")),
        },
        "layer": [
            *([] if limit is None else [rule_at(limit / MILLION, "x")]),
            steps,
            {"mark": {"type": "point", "filled": True, "size": size, "opacity": 0.9}, "encoding": shape(roles)},
            {
                "transform": [{"filter": "datum.named"}],
                "mark": {"type": "text", "dy": -11, "fontSize": 11, "limit": 190},
                "encoding": {"text": {"field": "short"}, "color": None},
            },
        ],
    }
    note = f"{dropped} rows more than {ABOVE} nats above the worst of both models are not shown. " if dropped else ""
    if limit is not None:
        note += "The dashed line is the composite's cost: what lies left of it and below the composite beats it."
    return Chart(name=name, title=f"Cross-entropy against {what}", spec=spec, roles=roles, note=note)


def best_for_every_budget(points: Sequence[dict]) -> list[dict]:
    """The points that are better than all that cost no more, cheapest first."""
    kept: list[dict] = []
    for point in sorted(points, key=lambda one: (one["cost"], one["value"])):
        if not kept or point["value"] < kept[-1]["value"]:
            kept.append(point)
    return kept
