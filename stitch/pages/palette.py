"""What a colour and a shape mean, the same on every page: one role, one colour, one shape, in light and in dark mode.

Neighbours differ for readers without red or green cones as well, and every colour stands out from its background; tests measure
both.
"""

from dataclasses import dataclass

BACKGROUND = {"light": "#ffffff", "dark": "#14171c"}


@dataclass(frozen=True)
class Role:
    """What a row is to the reader: its name in a legend, its colours, and its shape, as Vega-Lite names it."""

    name: str
    light: str
    dark: str
    shape: str


ROLES = {
    "a": Role("A", "#0660a7", "#44a7f3", "square"),
    "b": Role("B", "#9f4c23", "#e99659", "diamond"),
    "composite": Role("composite", "#111418", "#ffffff", "circle"),
    "alternative": Role("alternative", "#218c60", "#45d8a8", "triangle-up"),
    "baseline": Role("baseline", "#7b2b72", "#de96d3", "cross"),
    "bound": Role("floor, ceiling or line", "#968301", "#e3cf53", "triangle-right"),
    "null": Role("null", "#7c8188", "#91959c", "triangle-down"),
}
# From few nats to many; dark at the far end in light mode. Cividis is even to the eye and for colour-blind readers.
HEAT = ["#fee838", "#d4c159", "#a59c74", "#7d7c78", "#575d6d", "#2c4170", "#00224e"]


def role_of(row: str, alternatives: frozenset[str] = frozenset()) -> str:
    """The role of a report's row; `alternatives` are the names of those that the verdict compares with."""
    kind = row.partition(":")[0]
    if row in ("a", "donor", "model"):
        return "a"
    if row in ("b", "composite"):
        return row
    if row == "converted":
        return "composite"
    if row in alternatives:
        return "alternative"
    return {"null": "null", "floor": "bound", "ceiling": "bound", "line": "bound"}.get(kind, "baseline")


def darkened() -> dict[str, str]:
    """The dark mode's colour for every colour of the light mode, for the page to replace in its charts."""
    return {role.light: role.dark for role in ROLES.values()}
