"""The picture of a sweep. Needs matplotlib."""

from pathlib import Path

from stitch.report.sweep import UNITS, heat, swept_directions

MOST_NUMBERS = 400  # cells; larger heat maps show colours alone
MILLION = 1e6  # FLOPs and bytes are shown in millions


def draw_sweep(report: dict, path: Path) -> None:
    """sweep.png: a heat map per direction, and cross-entropy against FLOPs and bytes with both fronts."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 11), layout="constrained")
    FigureCanvasAgg(figure)  # neither a display nor the global state of pyplot is needed
    axes = figure.subplots(2, 2)
    for axis, (source, _) in zip(axes[0], swept_directions(report), strict=False):
        _draw_heat(figure, axis, report, source)
    if len(swept_directions(report)) == 1:
        axes[0][1].axis("off")
    for axis, cost in zip(axes[1], report["fronts"], strict=True):
        _draw_front(axis, report, cost)
    # Without matplotlib's version in it: the same inputs give the same bytes.
    figure.savefig(path, dpi=100, metadata={"Software": None})


def _draw_heat(figure, axis, report: dict, source: str) -> None:
    """One direction's cross-entropy above the alternatives as colours and numbers; the chosen j of each i is framed."""
    from matplotlib.patches import Rectangle

    _, _, _, values = heat(report, source)
    target = next(target for side, target in swept_directions(report) if side == source)
    image = axis.imshow(values, cmap="cividis_r", aspect="auto", origin="upper")
    axis.set_xticks(range(len(values[0])))
    axis.set_yticks(range(len(values)))
    axis.set_xlabel(f"j: {report['models'][target]} goes on at block j")
    axis.set_ylabel(f"i: {report['models'][source]} runs its first i blocks")
    axis.set_title(f"{report['models'][source]} → {report['models'][target]}, nats above the best alternative")
    figure.colorbar(image, ax=axis, label="above the best alternative with no more FLOPs, nats per token")
    if len(values) * len(values[0]) <= MOST_NUMBERS:
        middle = (image.norm.vmin + image.norm.vmax) / 2
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                # cividis_r is dark where values are high
                axis.text(j, i, f"{round(value, 2) + 0.0:.2f}", ha="center", va="center", fontsize=8,
                          color="white" if value > middle else "black")  # fmt: skip
    for row in report["best_layers"]:
        if row["source"] == source:
            box = {"fill": False, "edgecolor": "crimson", "linewidth": 2}
            axis.add_patch(Rectangle((row["j"] - 0.48, row["i"] - 0.48), 0.96, 0.96, **box))


def _draw_front(axis, report: dict, cost: str) -> None:
    """Cross-entropy against a cost: every composite, both whole models, and the Pareto front."""
    for (source, target), colour in zip(swept_directions(report), ("#3b6fb6", "#c98a1b"), strict=False):
        of_source = [cell for cell in report["cells"] if cell["source"] == source]
        rows = [cell["translations"][cell["chosen"]] for cell in of_source]
        costs = [row[cost] / MILLION for row in rows]
        label = f"{report['models'][source]} → {report['models'][target]}"
        axis.plot(costs, [row["ce"] for row in rows], ".", color=colour, alpha=0.6, label=label)
    points = report["fronts"][cost]
    axis.step([point[cost] / MILLION for point in points], [point["ce"] for point in points], where="post",
              color="black", linewidth=1, label="front (chosen on the sweep split)")  # fmt: skip
    for side, marker in (("a", "s"), ("b", "D")):
        donor = report["donors"][side]
        axis.plot(donor[cost] / MILLION, donor["ce"], marker, color="black", label=report["models"][side])
    for (side, name), marker in zip(report["models"].items(), ("^", "v"), strict=True):
        if tables := [one for one in report["alternatives"] if one["model"] == side]:
            axis.plot([one[cost] / MILLION for one in tables], [one["ce"] for one in tables], marker, color="crimson",
                      markersize=5, label=f"{name} with tables for its first blocks, no other model")  # fmt: skip
    lowest = min(point["ce"] for point in points)
    shown = sorted(cell["translations"][cell["chosen"]]["ce"] for cell in report["cells"])
    axis.set_ylim(lowest - 0.1, max(shown[int(0.9 * (len(shown) - 1))], report["donors"]["a"]["ce"] + 0.2,
                                    report["donors"]["b"]["ce"] + 0.2))  # fmt: skip
    axis.set_xlabel(UNITS[cost])
    axis.set_ylabel("cross-entropy, nats per token")
    axis.set_title(f"Pareto front against {'FLOPs' if cost == 'flops' else cost}")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
