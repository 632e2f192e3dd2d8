"""Figures in the colours and shapes of pages, as wide as a column. Their text is no smaller than POINTS at that width.

matplotlib is imported when something is drawn. Neither a display nor its global state is needed.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stitch.report.palette import FRAME, HEAT, ROLES, ink_on_heat

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMN, POINTS = 3.5, 7  # inches, and the size of text
STYLE: Any = {
    "font.size": POINTS, "axes.titlesize": POINTS, "axes.titleweight": "bold", "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True, "grid.alpha": 0.3, "grid.linewidth": 0.5,
    "axes.linewidth": 0.6, "lines.linewidth": 1.1, "lines.markersize": 4.5, "lines.markeredgewidth": 0.8,
    "figure.titlesize": POINTS, "figure.titleweight": "bold", "figure.labelsize": POINTS, "legend.frameon": False,
}  # fmt: skip
DOTS_PER_INCH = 200
DASHES, FILLS, SIZES = ("-", "--", ":"), ("full", "none", "full"), (4.5, 4.5, 2.5)  # of what shares a role
MARKERS = ("h", "X", "*", "d", "<", "p")  # of what has no role
LIGHTEST = 0.4  # share of HEAT from which on lines can be seen on white
MOST_COLUMNS = 10  # of a map with numbers in it


@contextmanager
def style() -> Iterator[None]:
    """The settings of all figures, also as a decorator. Ticks are made when a figure is saved, which belongs inside as well."""
    from matplotlib import rc_context

    with rc_context(STYLE):
        yield


def panels(rows: int, columns: int, height: float, **more: Any) -> tuple["Figure", list["Axes"]]:
    """A figure with panels `height` inches high, and the panels, row after row. `more` goes to Figure.subplots."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(COLUMN, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False, **more).flat)


def save(figure: "Figure", path: Path) -> None:
    """Writes a PNG. Without matplotlib's version in it the same inputs give the same bytes."""
    figure.savefig(path, dpi=DOTS_PER_INCH, metadata={"Software": None}, pil_kwargs={"optimize": True})


def marks(role: str, variant: int = 0, *, line: bool = True) -> dict[str, Any]:
    """Colour, marker and line of a role. What shares a role differs by `variant`, 0 to 2: filled and solid,
    hollow and dashed, small and dotted."""
    return {
        "color": ROLES[role].light,
        "marker": ROLES[role].marker,
        "fillstyle": FILLS[variant],
        "markersize": SIZES[variant],
        "linestyle": DASHES[variant] if line else "none",
    }


def series(count: int) -> list[dict[str, Any]]:
    """Colours from dark to light, markers and lines of things that have no role, such as sizes or stages."""
    steps = [1 - (1 - LIGHTEST) * place / max(1, count - 1) for place in range(count)]
    return [
        {"color": heat_colours()(step), "marker": MARKERS[place % len(MARKERS)], "linestyle": DASHES[place % len(DASHES)]}
        for place, step in enumerate(steps)
    ]  # fmt: skip


def wide(report: dict, side: str) -> str:
    """What a model is called in a title, such as `demo:gpt2 (width 160)`."""
    return f"{report['models'][side]} (width {report['provenance']['models'][side]['width']})"


def curve(axis: "Axes", points: Iterable[tuple[float, Sequence[float]]], how: dict[str, Any], label: str) -> None:
    """A line through the means of several values at each place, in a band from the lowest to the highest."""
    at, values = zip(*points, strict=True)
    axis.plot(at, [sum(some) / len(some) for some in values], **how, label=label)
    axis.fill_between(
        at, [min(some) for some in values], [max(some) for some in values], color=how["color"], alpha=0.15
    )


def interval(axis: "Axes", height: float, row: dict, how: dict[str, Any], label: str = "", key: str = "ce") -> None:
    """A point with its interval, lying at `height`. `row` has the value in `key`, and the ends beside it, if there are any."""
    low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
    if low is not None and high is not None:
        axis.plot([low, high], [height, height], color=how["color"], linewidth=1.8, alpha=0.5)
    axis.plot(row[key], height, **{**how, "linestyle": "none"}, label=label)


def rule(
    axis: "Axes", value: float, *, upright: bool = False, role: str = "null", label: str = "", dash: str = "--"
) -> None:
    """A dashed line through a panel, such as a zero or a bound; behind what is drawn."""
    draw = axis.axvline if upright else axis.axhline
    draw(value, color=ROLES[role].light, linestyle=dash, linewidth=0.9, zorder=1, label=label)


def logarithmic(axis: "Axes", which: str, ticks: Sequence[float] = ()) -> None:
    """Makes the x or y axis logarithmic, with plain numbers: exponents would be too small to read. `ticks` are the only ones."""
    from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, StrMethodFormatter

    axis.set(**{f"{which}scale": "log"})
    side = axis.xaxis if which == "x" else axis.yaxis
    side.set_major_formatter(StrMethodFormatter("{x:,.10g}"))
    side.set_minor_formatter(NullFormatter())
    if ticks:
        side.set_major_locator(FixedLocator(ticks))
        side.set_minor_locator(NullLocator())


def whole_numbers(axis: "Axes", which: str) -> None:
    """Ticks of the x or y axis at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    (axis.xaxis if which == "x" else axis.yaxis).set_major_locator(MaxNLocator("auto", integer=True))


def legend(figure: "Figure", columns: int = 2) -> None:
    """One legend for all panels, below them. Every label is in it once, in the order in which panels have them."""
    from matplotlib.artist import Artist

    found: dict[str, Artist] = {}
    for axis in figure.axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=columns)


def heat_colours() -> Any:
    """HEAT as matplotlib has it."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("heat", HEAT)


def heat_map(
    axis: "Axes",
    values: Sequence[Sequence[float]],
    rows: Sequence[int],
    first: int,
    framed: Iterable[tuple[int, int]],
    ends: tuple[float, float],
) -> None:
    """A square for each of `values`, by row, of the numbers `rows`, and column, numbered from `first` on; NaN leaves a gap.

    Squares at the (row, column) of `framed` have a frame. Colours change between the numbers `ends`.
    """
    from matplotlib.patches import Rectangle

    left = first - 0.5
    extent = (left, left + len(values[0]), len(values) - 0.5, -0.5)
    axis.imshow(values, cmap=heat_colours(), vmin=ends[0], vmax=ends[1], aspect="auto", extent=extent)
    axis.grid(visible=False)
    for which in "xy":
        whole_numbers(axis, which)
    axis.yaxis.set_major_formatter(lambda place, _: str(rows[int(place)]) if 0 <= place < len(rows) else "")
    for row, column in framed:
        box = {"fill": False, "edgecolor": FRAME, "linewidth": 1.5}
        axis.add_patch(Rectangle((column - 0.46, rows.index(row) - 0.46), 0.92, 0.92, **box))
    if len(values[0]) > MOST_COLUMNS:
        return
    for row, line in enumerate(values):
        for column, value in enumerate(line, first):
            if value == value:
                ink = ink_on_heat((value - ends[0]) / (ends[1] - ends[0]))
                axis.text(column, row, f"{round(value, 2) + 0.0:.2f}", ha="center", va="center", color=ink)


def heat_legend(figure: "Figure", axes: Sequence["Axes"], ends: tuple[float, float], what: str) -> None:
    """What the colours of the maps in `axes` mean, below them."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    scale = ScalarMappable(Normalize(*ends), heat_colours())
    figure.colorbar(scale, ax=axes, location="bottom", shrink=0.8, aspect=40, label=what, extend="max")
