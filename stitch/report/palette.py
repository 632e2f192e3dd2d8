"""What a colour and a shape mean on every page and in every figure: one role, one colour, one shape.

Pages have a light and a dark mode, figures the colours of the light one. Neighbours differ for readers without red or green cones
as well, and every colour stands out from its background; tests measure both.
"""

from collections.abc import Iterable
from dataclasses import dataclass

BACKGROUND = {"light": "#ffffff", "dark": "#14171c"}


@dataclass(frozen=True)
class Role:
    """What a row is to the reader: its name in a legend, its colours, and its shape, as Vega-Lite and matplotlib name it."""

    name: str
    light: str
    dark: str
    shape: str
    marker: str


ROLES = {
    "a": Role("A", "#0660a7", "#44a7f3", "square", "s"),
    "b": Role("B", "#9f4c23", "#e99659", "diamond", "D"),
    "composite": Role("composite", "#111418", "#ffffff", "circle", "o"),
    "alternative": Role("alternative", "#218c60", "#45d8a8", "triangle-up", "^"),
    "baseline": Role("baseline", "#7b2b72", "#de96d3", "cross", "P"),
    "bound": Role("floor, ceiling or line", "#968301", "#e3cf53", "triangle-right", ">"),
    "null": Role("null", "#7c8188", "#91959c", "triangle-down", "v"),
}
# From low numbers to high ones, of nats or of correlation; dark at the far end in light mode. Cividis is even to the eye and for
# colour-blind readers.
HEAT = ["#fee838", "#d4c159", "#a59c74", "#7d7c78", "#575d6d", "#2c4170", "#00224e"]
FRAME = "#d6215b"  # around a square, on all of HEAT
FROM, TO = 0.0, 0.85  # shares of a map's numbers between which colours change; larger ones have the last colour


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


def ends_of(values: Iterable[float], to: float = TO) -> tuple[float, float]:
    """The numbers at which the colours of HEAT begin and end, for maps that are to be compared."""
    found = sorted(values)
    low, high = (found[round(share * (len(found) - 1))] for share in (FROM, to))
    return low, max(high, low + 1e-9)


def ink_on_heat(share: float) -> str:
    """The colour of text that can be read on HEAT at a share of its length."""
    return BACKGROUND["light" if share > 0.5 else "dark"]
