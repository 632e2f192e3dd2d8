"""Lines over ordered bins, one per role, with intervals."""

from collections.abc import Sequence

from stitch.pages.chart import FLUID, Chart, axis, colour, roles_in, rule_at, shape, tips

HEIGHT = 280
SHORT = 3  # characters of a bin's name that stands upright


def curves(
    name: str,
    title: str,
    points: Sequence[dict],
    across: str,
    up: str,
    *,
    kind: str = "ordinal",
    zero: bool = False,
    names: dict[str, str] | None = None,
    note: str = "",
) -> Chart:
    """A line per label through `points` of {"label", "role", "at", "value", "low", "high"}; `at` in the order it comes in.

    Ends of intervals may be None. With `zero` there is a line at zero.
    """
    roles = roles_in(points)
    long = any(len(str(point["at"])) > SHORT for point in points)
    at = (
        {"scale": {"nice": False}}
        if kind == "quantitative"
        else {"sort": None, "axis": {"labelAngle": -35 if long else 0}}
    )
    spec = {
        "data": {"values": list(points)},
        **FLUID,
        "height": HEIGHT,
        "encoding": {
            "x": axis("at", across, kind, **at),
            **colour(roles),
            "tooltip": tips(
                ("label", "row", ""),
                ("at", across, ""),
                ("value", up, ".4f"),
                ("low", "from", ".4f"),
                ("high", "to", ".4f"),
            ),
        },
        "layer": [
            *([rule_at(0, "y")] if zero else []),
            {
                "transform": [{"filter": "isValid(datum.low)"}],
                "mark": {"type": "rule", "opacity": 0.4, "strokeWidth": 2},
                "encoding": {"y": axis("low", up), "y2": {"field": "high"}},
            },
            {
                "mark": {"type": "line", "strokeWidth": 1.5},
                "encoding": {"y": axis("value", up), "detail": {"field": "label"}},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 60, "opacity": 1},
                "encoding": {"y": axis("value", up), **shape(roles)},
            },
        ],
    }
    return Chart(name=name, title=title, spec=spec, roles=roles, names=names or {}, note=note)
