"""A chart of a page: a Vega-Lite specification, what it is called, and which roles it shows."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sae.messages import printable
from stitch.report.palette import ROLES

Spec = dict[str, Any]
# Fonts and sizes of every chart. Colours of text and axes are the page's, as its style says.
LABEL_LIMIT = 260  # pixels of a label, after which it is cut
LEGEND_COLUMNS = 3  # of a picture
SMALL = {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal"}
CONFIG: Spec = {
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {**SMALL, "labelFlush": False, "labelOverlap": "greedy", "labelSeparation": 6, "labelLimit": LABEL_LIMIT},
    "axisQuantitative": {"tickCount": 8},
    "legend": {**SMALL, "titleLimit": 320},
}
# A page's charts are as wide as there is room, and as high as they say.
FLUID = {"width": "container", "autosize": {"type": "fit-x", "contains": "padding"}}
GREY = ROLES["null"].light


@dataclass(frozen=True, kw_only=True)
class Chart:
    """`name` is unique on its page; `title` is read by screen readers as well. `roles` make the legend above the chart, with
    `names` in place of the roles' own.

    `groups` can be switched off: by name, what they are called, and whether they are shown at first.
    """

    name: str
    title: str
    spec: Spec
    roles: tuple[str, ...] = ()
    names: dict[str, str] = field(default_factory=dict)
    groups: dict[str, tuple[str, bool]] = field(default_factory=dict)
    shaped: bool = True  # whether roles have their shapes in it as well
    note: str = ""


def roles_in(values: Iterable[dict]) -> tuple[str, ...]:
    """The roles of some data, in the order of the palette."""
    there = {value["role"] for value in values}
    return tuple(role for role in ROLES if role in there)


def colour(roles: Iterable[str], channel: str = "color") -> Spec:
    """The encoding of a datum's `role` by colour, or by another channel. The page has the legend."""
    names = list(roles)
    scale = {"domain": names, "range": [ROLES[name].light for name in names]}
    return {channel: {"field": "role", "type": "nominal", "scale": scale, "legend": None}}


def shape(roles: Iterable[str]) -> Spec:
    """The encoding of a datum's `role` by shape."""
    names = list(roles)
    scale = {"domain": names, "range": [ROLES[name].shape for name in names]}
    return {"shape": {"field": "role", "type": "nominal", "scale": scale, "legend": None}}


def drawn(chart: Chart) -> list[dict]:
    """The data of a picture: those of the groups shown at first."""
    values = chart.spec["data"]["values"]
    return [one for one in values if chart.groups[one["group"]][1]] if chart.groups else values


def left_out(chart: Chart) -> list[str]:
    """What a picture says below its title of the groups that it leaves out, in two lines; empty where it has all."""
    absent = [heading for heading, shown in chart.groups.values() if not shown]
    if not absent:
        return []
    return [f"{len(drawn(chart))} of {len(chart.spec['data']['values'])} rows. Also in the table:", ", ".join(absent)]


def with_legend(chart: Chart) -> Spec:
    """The specification with its title and a legend below it, for a picture. It has the groups shown at first."""
    there = roles_in(drawn(chart)) if chart.groups else chart.roles
    labels = {name: printable(chart.names.get(name, ROLES[name].name)) for name in there}
    legend = {
        "orient": "bottom",
        "title": None,
        "columns": LEGEND_COLUMNS,
        "labelLimit": LABEL_LIMIT,
        "values": list(labels),
        "symbolOpacity": 1,
        "labelExpr": f"{json.dumps(labels)}[datum.label]",
    }

    def shown(value: Any) -> Any:
        if isinstance(value, str):
            return printable(value)  # control characters make no SVG, and the program that draws it aborts
        if isinstance(value, list):
            return [shown(one) for one in value]
        if not isinstance(value, dict):
            return value
        return {
            key: legend if key == "legend" and value.get("field") == "role" else shown(one)
            for key, one in value.items()
        }

    title = {"text": printable(chart.title), "subtitle": left_out(chart)}
    # Charts of a page fit their place. A picture has room for all that is drawn, and grows where its legend is wide.
    return {**shown(chart.spec), "title": title, "autosize": "pad"}


def axis(field: str, title: str, kind: str = "quantitative", **more: Any) -> Spec:
    """An encoding of a field by place, whose scale need not begin at zero."""
    scale = more.pop("scale", {})
    if kind == "quantitative" and scale.get("type") != "log":
        scale = {"zero": False, **scale}
    return {"field": field, "type": kind, "title": title, **more, **({"scale": scale} if scale else {})}


def tips(*fields: tuple[str, str, str]) -> list[Spec]:
    """Tooltip lines: field, title and number format; text where the format is empty."""
    return [
        {"field": field, "title": title, **({"type": "quantitative", "format": form} if form else {"type": "nominal"})}
        for field, title, form in fields
    ]


def rule_at(value: float, channel: str) -> Spec:
    """A dashed line through the whole chart at a value of "x" or "y"."""
    inherited = dict.fromkeys(("x", "y", "color", "tooltip"))
    return {
        "data": {"values": [{"at": value}]},
        "mark": {"type": "rule", "strokeDash": [4, 3], "strokeWidth": 1, "color": GREY},
        "encoding": {**inherited, channel: {"field": "at", "type": "quantitative"}},
    }
