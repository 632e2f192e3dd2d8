"""The picture of a depth sweep. Needs matplotlib."""

from pathlib import Path

from stitch.report.depth import ROWS, best_in, heat, kinds, rows
from stitch.report.figure import heat_legend, heat_map, legend, marks, panels, rule, save, style, whole_numbers, wide
from stitch.report.palette import ends_of

ROLE = {"passthrough": "baseline", "down-projection": "composite"}


@style()
def draw_depth(report: dict, path: Path) -> None:
    """depth.png: a map of loss per kind and row, and of each kind the best ranges' loss on the report split by length."""
    shown = [(kind, row) for kind in kinds(report) for row in rows(report)]
    figure, axes = panels(len(shown) + len(kinds(report)), 1, 1.8)
    whole = report["whole"]["sweep_ce"]
    ends = ends_of(cell["sweep_ce"][row] - whole for cell in report["cells"] for row in rows(report))
    for axis, (kind, row) in zip(axes, shown, strict=False):
        _, header, texts, values = heat(report, kind, row)
        framed = [(one["length"], one["first"]) for one in best_in(report, kind, row)]
        heat_map(axis, values, [int(line[0]) for line in texts], int(header[1]), framed, ends)
        title = f"{wide(report, 'a')}, {ROWS[row].replace('`', '')}"
        axis.set(title=title, xlabel=f"first block {kind}", ylabel=f"blocks {kind}")
    what = "nats above the whole model, sweep split"
    heat_legend(figure, axes[: len(shown)], ends, what)
    for axis, kind in zip(axes[len(shown) :], kinds(report), strict=True):
        _draw_best(axis, report, kind)
    legend(figure, 1)
    save(figure, path)


def _draw_best(axis, report: dict, kind: str) -> None:
    """Nats above the whole model of the best range of each length, with intervals, and of other ranges."""
    for row in rows(report):
        found = best_in(report, kind, row)
        points = [next(item for item in one["rows"] if item["name"] == row) for one in found]
        at, losses = [one["length"] for one in found], [point["minus_whole"] for point in points]
        how = marks(ROLE[row])
        axis.vlines(
            at, [loss["ce_low"] for loss in losses], [loss["ce_high"] for loss in losses], color=how["color"], alpha=0.5
        )
        axis.plot(at, [loss["ce"] for loss in losses], **how, label=ROWS[row].replace("`", ""))
    for variant, row in enumerate(rows(report)):
        elsewhere = [
            (one["length"], item["null_ce"] - report["whole"]["ce"])
            for one in best_in(report, kind, row)
            for item in one["rows"]
            if item["name"] == row and "null_ce" in item
        ]
        if elsewhere:
            label = f"as many blocks elsewhere, {ROWS[row].replace('`', '')}"
            axis.plot(*zip(*elsewhere, strict=True), **marks("null", variant, line=False), label=label)
    rule(axis, 0)
    whole_numbers(axis, "x")
    axis.set(title=f"{wide(report, 'a')}, best range of each length", xlabel=f"blocks {kind}",
             ylabel="nats above the whole")  # fmt: skip
