"""Where a graft's heads and neurons landed: a line from each in the donor to its place in the host."""

import math
from collections.abc import Iterable

from stitch.pages.chart import FLUID, Chart, Spec, tips
from stitch.report.palette import ROLES

ROW = 24  # pixels
LOST = {
    "domain": [0, 1],
    "range": [0.9, 0.15],
    "clamp": True,
}  # opacity of a line by the share of the output that is lost


def landing(number: int, graft: dict) -> Chart | None:
    """The chart of graft `number` of a report; None for a graft of nothing."""
    lines = sorted(_lines(graft["plan"]), key=lambda line: line["early"])
    if not lines:
        return None
    left = dict.fromkeys(line["from"] for line in lines)
    right = dict.fromkeys(line["to"] for line in sorted(lines, key=lambda line: line["late"]))
    height = max(len(left), len(right))
    left, right = _spread(left, height), _spread(right, height)
    values = [
        {"from": line["from"], "to": line["to"], "kind": line["kind"], "lost": line["lost"], "x": 0, "x2": 1,
         "y": left[line["from"]], "y2": right[line["to"]]}
        for line in lines
    ]  # fmt: skip
    rules = {
        "data": {"values": values},
        "mark": {"type": "rule", "strokeWidth": 2, "color": ROLES["composite"].light},
        "encoding": {
            "x2": {"field": "x2"},
            "y2": {"field": "y2"},
            "opacity": {"field": "lost", "type": "quantitative", "scale": LOST, "legend": None},
            "tooltip": tips(
                ("from", "donor", ""), ("to", "host", ""), ("kind", "made as", ""), ("lost", "output lost", ".1%")
            ),
        },
    }
    down = {"reverse": True, "domain": [-0.5, height - 0.5]}
    spec = {
        **FLUID,
        "height": ROW * height,
        "encoding": {
            "x": {"field": "x", "type": "quantitative", "axis": None, "scale": {"domain": [-0.9, 1.9]}},
            "y": {"field": "y", "type": "quantitative", "axis": None, "scale": down},
        },
        "layer": [rules, _names(left, 0, "a", "right"), _names(right, 1, "composite", "left")],
    }
    return Chart(name=f"landing-{number}", title=f"{graft['donor']}: {graft['behaviour']}", spec=spec)


def _lines(plan: dict) -> Iterable[dict]:
    """What is at both ends of every line, and its place there: block, then head, with neurons below the heads."""
    for each in plan["heads"]:
        here, there = (f"head {_dotted(each[side])}" for side in ("donor", "host"))
        yield {**each, "from": here, "to": there, "early": each["donor"], "late": each["host"]}
    for each in plan["neurons"]:
        here = f"{each['count']:,} neurons of block {each['donor']}"
        there = f"{each['as']:,} neurons of block {each['host']}"
        early, late = ([each[side], math.inf] for side in ("donor", "host"))
        yield {**each, "from": here, "to": there, "early": early, "late": late}


def _spread(names: dict[str, None], height: int) -> dict[str, float]:
    """A height for every name, evenly over all rows."""
    return {name: place * (height - 1) / max(1, len(names) - 1) for place, name in enumerate(names)}


def _names(places: dict[str, float], x: int, role: str, align: str) -> Spec:
    shift = -6 if align == "right" else 6
    return {
        "data": {"values": [{"name": name, "x": x, "y": y} for name, y in places.items()]},
        "mark": {"type": "text", "align": align, "dx": shift, "fontSize": 12, "color": ROLES[role].light},
        "encoding": {"text": {"field": "name"}},
    }


def _dotted(place: list[int]) -> str:
    """A head as block.number."""
    return ".".join(str(number) for number in place)
