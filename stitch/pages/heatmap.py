"""A map of numbers by two block numbers."""

from collections.abc import Sequence

from stitch.pages.chart import FLUID, Chart, tips
from stitch.report.palette import FRAME, HEAT

SQUARE = 24  # pixels


def heatmap(
    name: str,
    title: str,
    cells: Sequence[dict],
    across: str,
    down: str,
    what: str,
    ends: tuple[float, float],
    sign: str = "+",
) -> Chart:
    """A square for each of `cells`: {"x", "y", "value", "best"}; those that are `best` are framed. Numbers show on hover.

    `sign` says how numbers have theirs: "+" always, "" where they are below 0.
    """
    place = {
        "x": {"field": "x", "type": "ordinal", "title": across, "axis": {"labelAngle": 0}},
        "y": {"field": "y", "type": "ordinal", "title": down},
        "tooltip": tips(("y", down, ""), ("x", across, ""), ("value", what, f"{sign}.4f")),
    }
    scale = {"domain": list(ends), "range": HEAT, "clamp": True, "interpolate": "lab"}
    legend = {"orient": "bottom", "title": what, "gradientLength": 220, "format": f"{sign}.2f"}
    spec = {
        "data": {"values": list(cells)},
        **FLUID,
        "height": {"step": SQUARE},
        "encoding": place,
        "layer": [
            {
                "mark": {"type": "rect", "cursor": "crosshair"},
                "encoding": {"color": {"field": "value", "type": "quantitative", "scale": scale, "legend": legend}},
            },
            {
                "transform": [{"filter": "datum.best"}],
                "mark": {"type": "rect", "filled": False, "stroke": FRAME, "strokeWidth": 2.5},
            },
        ],
    }
    return Chart(name=name, title=title, spec=spec)
