"""The picture of a sweep. Needs matplotlib."""

from pathlib import Path
from textwrap import fill

from stitch.report.figure import heat_legend, heat_map, legend, marks, panels, save, style, wide
from stitch.report.palette import ROLES, ends_of
from stitch.report.sweep import UNITS, framed, heat, swept_directions

LINE = 62  # characters that fit in a column
SMALLER = 0.6  # there are dozens
KINDS = {
    "tables": "one model, tables for its first blocks",
    "cut": "one model without some blocks",
    "no-source": "late blocks behind their embedding",
}
MILLION = 1e6  # FLOPs and bytes are shown in millions


@style()
def draw_sweep(report: dict, path: Path) -> None:
    """sweep.png: a map per direction, and cross-entropy against FLOPs and bytes with both fronts."""
    directions = swept_directions(report)
    figure, axes = panels(len(directions) + len(report["fronts"]), 1, 2.4)
    maps = {source: heat(report, source)[3] for source, _ in directions}
    ends = ends_of(value for values in maps.values() for line in values for value in line)
    for axis, (source, target) in zip(axes, directions, strict=False):
        early, late = report["models"][source], report["models"][target]
        chosen = [(row["i"], row["j"]) for row in report["best_layers"] if row["source"] == source]
        heat_map(axis, maps[source], range(len(maps[source])), 0, chosen, ends)
        axis.set(
            title=f"{wide(report, source)} → {wide(report, target)}",
            xlabel=f"j: {late} goes on at block j",
            ylabel=f"i: first i blocks of {early}",
        )
    what = f"nats above the best alternative with no more FLOPs\n{fill(framed(report), LINE)}"
    heat_legend(figure, axes[: len(directions)], ends, what)
    for axis, cost in zip(axes[len(directions) :], report["fronts"], strict=True):
        _draw_front(axis, report, cost)
    legend(figure, 1)
    save(figure, path)


def _draw_front(axis, report: dict, cost: str) -> None:
    """Cross-entropy against a cost: both whole models, every composite, the alternatives, and the front."""
    for side, name in report["models"].items():
        donor = report["donors"][side]
        axis.plot(donor[cost] / MILLION, donor["ce"], **marks(side, line=False), label=name)
    for variant, (source, target) in enumerate(swept_directions(report)):
        of_source = [cell for cell in report["cells"] if cell["source"] == source]
        rows = [cell["translations"][cell["chosen"]] for cell in of_source]
        label = f"composites {report['models'][source]} → {report['models'][target]}"
        style = {**marks("composite", variant, line=False), "markersize": 2.5}
        axis.plot([row[cost] / MILLION for row in rows], [row["ce"] for row in rows], **style, label=label)
    for variant, (kind, words) in enumerate(KINDS.items()):
        if alone := [one for one in report["alternatives"] if one["kind"] == kind]:
            style = marks("alternative", variant, line=False)
            style["markersize"] *= SMALLER
            axis.plot([one[cost] / MILLION for one in alone], [one["ce"] for one in alone], **style, label=words)
    points = report["fronts"][cost]
    axis.step([point[cost] / MILLION for point in points], [point["ce"] for point in points], where="post",
              color=ROLES["null"].light, label="front, chosen on the sweep split")  # fmt: skip
    lowest = min(point["ce"] for point in points)
    shown = sorted(cell["translations"][cell["chosen"]]["ce"] for cell in report["cells"])
    axis.set_ylim(lowest - 0.1, max(shown[int(0.9 * (len(shown) - 1))], report["donors"]["a"]["ce"] + 0.2,
                                    report["donors"]["b"]["ce"] + 0.2))  # fmt: skip
    title = f"{report['models']['a']} and {report['models']['b']} against {'FLOPs' if cost == 'flops' else cost}"
    axis.set(title=title, xlabel=UNITS[cost], ylabel="cross-entropy, nats per token")
