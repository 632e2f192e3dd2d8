"""Rows with their 95 % intervals: cross-entropies, and paired differences."""

from collections.abc import Sequence

from stitch.pages.chart import FLUID, Chart, Spec, axis, colour, roles_in, rule_at, shape, tips

STEP = 21  # pixels between rows


def intervals(
    name: str,
    title: str,
    rows: Sequence[dict],
    what: str,
    *,
    groups: dict[str, tuple[str, bool]] | None = None,
    difference: bool = False,
    domain: tuple[float, float] | None = None,
    names: dict[str, str] | None = None,
    note: str = "",
) -> Chart:
    """A row for each of `rows`, from the top: {"label", "role", "value", "low", "high"}, and "group" if there are `groups`.

    `what` is on the axis, from end to end of `domain` if there is one. With `difference` there is a line at zero. Ends of
    intervals may be None.
    """
    roles = roles_in(rows)
    shown = [group for group, (_, on) in (groups or {}).items() if on]
    ends: Spec = (
        {} if domain is None else {"scale": {"domain": list(domain), "clamp": True, "padding": 8, "nice": False}}
    )
    interval = {
        "transform": [{"filter": "isValid(datum.low)"}],
        "mark": {"type": "rule", "strokeWidth": 2.5, "opacity": 0.6},
    }
    marks = [
        {**interval, "encoding": {"x": axis("low", what, **ends), "x2": {"field": "high"}}},
        {
            "mark": {"type": "point", "filled": True, "size": 75, "opacity": 1},
            "encoding": {"x": axis("value", what, **ends), **shape(roles)},
        },
    ]
    if difference:
        marks.insert(0, rule_at(0, "x"))
    labels = [row["label"] for row in rows]
    spec = {
        "data": {"values": list(rows)},
        **FLUID,
        "height": {"step": STEP},
        "encoding": {
            "y": {"field": "label", "type": "nominal", "sort": labels, "title": None},
            **colour(roles),
            "tooltip": tips(
                ("label", "row", ""), ("value", what, ".4f"), ("low", "from", ".4f"), ("high", "to", ".4f")
            ),
        },
        "layer": marks,
    }
    if groups:
        spec["params"] = [{"name": "shown", "value": shown}]
        spec["transform"] = [{"filter": "indexof(shown, datum.group) >= 0"}]
    return Chart(name=name, title=title, spec=spec, roles=roles, names=names or {}, groups=groups or {}, note=note)
