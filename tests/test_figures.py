"""Figures: colours with the meanings that they have on pages, text that can be read in a column, legends beside the panels."""

import json
import re
from collections import Counter
from pathlib import Path

import figures
import pytest
from drawings import models
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

import page_reports
from stitch.models.sources import DEMOS
from stitch.report import depth_figure, sweep_figure
from stitch.report.figure import COLUMN, POINTS, marks, series, style
from stitch.report.palette import ROLES, ends_of

ROOT = Path(__file__).parent.parent
PALETTE = ROOT / "stitch" / "report" / "palette.py"
SOURCES = [
    file
    for folder in (
        "benchmarks",
        "docs/figures",
        "examples",
        "stitch/report",
        "stitch/pages",
        "stitch/api",
        "stitch/jobs",
    )
    for file in sorted((ROOT / folder).rglob("*.py"))
    if file != PALETTE
]
# Hexadecimal colours, matplotlib's cycle and maps of colours, names given to a function, and names alone.
OWN_COLOUR = re.compile(
    r"""["']\#[0-9a-fA-F]{3,8}["'] | ["']C(\d|\{) | cmap\s*=\s*["'] | pyplot
        | colou?rs?["']?\s*[=:]\s*["'](?!int|str)[a-z]+["']
        | ["'](black|white|gr[ae]y|red|green|blue|crimson|orange|tab:\w+)["']""",
    re.VERBOSE,
)
DRAWN = [*figures.FIGURES, "sweep", "depth"]


@pytest.mark.parametrize(
    "line",
    ['"#3b6fb6"', 'f"C{number}"', 'color="black"', '"edgecolor": "crimson"', 'cmap="cividis_r"', "import pyplot"],
)
def test_a_colour_of_its_own_is_recognised(line):
    assert OWN_COLOUR.search(line)


def test_colours_are_those_of_the_palette():
    found = [
        f"{file.relative_to(ROOT)}: {line.strip()}"
        for file in SOURCES
        for line in file.read_text().splitlines()
        if OWN_COLOUR.search(line)
    ]
    assert found == [], "take these from stitch/report/palette.py"


def drawn(name: str, monkeypatch: pytest.MonkeyPatch) -> Figure:
    """A figure as it is before it is saved."""
    if name in figures.FIGURES:
        return figures.drawn(name, figures.results(name))
    kept: list[Figure] = []
    module = {"sweep": sweep_figure, "depth": depth_figure}[name]
    monkeypatch.setattr(module, "save", lambda figure, path: kept.append(figure))
    report = getattr(page_reports, f"{name}_report")()
    getattr(module, f"draw_{name}")(report, Path(f"{name}.png"))
    return kept[0]


@pytest.mark.parametrize("name", DRAWN)
@style()
def test_a_figure_can_be_read_in_a_column_and_in_grey(name, monkeypatch):
    figure = drawn(name, monkeypatch)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    panels = [axis for axis in figure.axes if axis.get_label() != "<colorbar>"]
    (legend,) = figure.legends
    assert figure.get_figwidth() == COLUMN
    assert {text.get_fontsize() for text in texts(figure)} == {POINTS}
    assert [text.get_text() for text in texts(figure) if not inside(figure, text.get_window_extent())] == []
    assert not any(legend.get_window_extent().overlaps(axis.bbox) or axis.get_legend() for axis in figure.axes)
    assert figure.get_suptitle() or all(axis.get_title() for axis in panels)
    looks = Counter(
        (one.get_marker(), one.get_fillstyle(), one.get_markersize(), one.get_linestyle())
        for one in legend.legend_handles
    )
    assert looks.total() == len(looks), looks
    assert {one.get_color() for one in legend.legend_handles} <= {
        *(role.light for role in ROLES.values()),
        *(how["color"] for count in range(1, 7) for how in series(count)),
    }
    order = [text.get_text() for text in legend.get_texts()]
    for axis in panels:
        labels = list(dict.fromkeys(axis.get_legend_handles_labels()[1]))
        assert labels == [label for label in order if label in labels]


def texts(figure: Figure) -> list[Text]:
    """All that is written. matplotlib keeps labels of ticks beyond the limits of an axis, which it does not draw."""
    undrawn = {
        label
        for axis in figure.axes
        for side in (axis.xaxis, axis.yaxis)
        for low, high in [sorted(side.get_view_interval())]
        for tick in (*side.get_major_ticks(), *side.get_minor_ticks())
        if not low <= tick.get_loc() <= high
        for label in (tick.label1, tick.label2)
    }
    return [text for text in figure.findobj(Text) if text.get_visible() and text.get_text() and text not in undrawn]


def inside(figure: Figure, box: Bbox) -> bool:
    page = figure.bbox.padded(1)  # of rounding
    return page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1


def test_the_committed_figures_are_those_that_are_drawn():
    there = {path.stem for path in (ROOT / "benchmarks" / "figures").glob("*.png")}
    assert there == {*DRAWN, "depth-smollm2"}  # the last is `stitch sweep`'s of another model


def test_titles_say_how_wide_the_models_are():
    for name in DEMOS:
        config = json.loads((ROOT / "stitch" / "demo" / name / "config.json").read_text())
        width = config.get("n_embd") or config["hidden_size"]
        assert f"demo:{name}" not in models.WIDTHS or models.WIDTHS[f"demo:{name}"] == width
    (axis, *_) = figures.drawn("readable", figures.results("readable")).axes
    assert axis.get_title() == "demo:gpt2 (width 160) → demo:llama (width 192)"


def test_what_shares_a_role_differs_in_shape_alone():
    variants = [marks("baseline", number) for number in range(3)]
    assert {how["color"] for how in variants} == {ROLES["baseline"].light}
    assert len({(how["fillstyle"], how["linestyle"], how["markersize"]) for how in variants}) == 3


def test_colours_of_a_map_end_before_its_largest_numbers():
    assert ends_of(range(101)) == (0, 85)
    low, high = ends_of([2.0, 2.0])
    assert low == 2.0 < high


def test_rows_of_a_depth_map_have_the_lengths_that_were_asked_for(monkeypatch):
    """Lengths need not follow one another."""
    report = page_reports.depth_report()
    longest = max(cell["length"] for cell in report["cells"])
    for one in (*report["cells"], *report["best"]):
        one["length"] = 7 if one["length"] == longest else one["length"]
    monkeypatch.setattr(page_reports, "depth_report", lambda: report)
    figure = drawn("depth", monkeypatch)
    FigureCanvasAgg(figure).draw()
    maps = [axis for axis in figure.axes if axis.images]
    for axis in maps:
        low, high = sorted(axis.get_ylim())
        labels = {tick.get_text(): place for tick, place in zip(axis.get_yticklabels(), axis.get_yticks(), strict=True)}
        framed = {round(patch.get_y() + 0.46) for patch in axis.patches}
        assert low < labels["7"] < high and labels["7"] in framed
    assert maps
