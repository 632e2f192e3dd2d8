"""A map of numbers by two block numbers."""

from collections.abc import Iterable, Sequence

from stitch.pages.chart import FLUID, Chart, tips
from stitch.pages.palette import HEAT

SQUARE = 24  # pixels
FROM, TO = 0.0, 0.85  # shares of the numbers between which colours change; larger ones have the last colour


def ends_of(values: Iterable[float]) -> tuple[float, float]:
    """The numbers at which colours begin and end, for maps that are to be compared."""
    found = sorted(values)
    low, high = (found[round(share * (len(found) - 1))] for share in (FROM, TO))
    return low, max(high, low + 1e-9)


def heatmap(
    name: str, title: str, cells: Sequence[dict], across: str, down: str, what: str, ends: tuple[float, float]
) -> Chart:
    """A square for each of `cells`: {"x", "y", "value", "best"}; those that are `best` are framed. Numbers show on hover."""
    place = {
        "x": {"field": "x", "type": "ordinal", "title": across, "axis": {"labelAngle": 0}},
        "y": {"field": "y", "type": "ordinal", "title": down},
        "tooltip": tips(("y", down, ""), ("x", across, ""), ("value", what, "+.4f")),
    }
    scale = {"domain": list(ends), "range": HEAT, "clamp": True, "interpolate": "lab"}
    legend = {"orient": "bottom", "title": what, "gradientLength": 220, "format": "+.2f"}
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


FRAME = "#d6215b"  # on all of HEAT
