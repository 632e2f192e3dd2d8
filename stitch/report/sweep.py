"""What a person sees of a sweep: tables for the terminal, a README, a picture."""

import importlib.util
from pathlib import Path

from stitch.errors import UsageError
from stitch.files.markdown import markdown_table

MOST_NUMBERS = 400  # cells; larger heat maps show colours alone
SAME = 1e-3  # nats. Where the target runs whole its composite is its null, but for rounding


def require_matplotlib() -> None:
    """Raises UsageError where the picture could not be drawn in the end."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("a sweep draws a picture, which needs matplotlib: pip install 'stitch-lm[plot]'")


def swept_directions(report: dict) -> list[tuple[str, str]]:
    """(source, target) of every direction that was swept."""
    return list(dict.fromkeys((cell["source"], cell["target"]) for cell in report["cells"]))


def heat(report: dict, source: str) -> tuple[str, list[str], list[list[str]], list[list[float]]]:
    """Title, header, rows and values of one direction's table: nats above the line, * at the best j of each i."""
    cells = {(cell["i"], cell["j"]): cell for cell in report["cells"] if cell["source"] == source}
    target = next(cell["target"] for cell in cells.values())
    best = {(row["i"], row["j"]) for row in report["best_layers"] if row["source"] == source}
    depth_i, depth_j = report["depth"][source], report["depth"][target]
    values = [[above(cells[i, j]) for j in range(depth_j + 1)] for i in range(depth_i + 1)]
    rows = [
        [str(i), *(f"{round(value, 2) + 0.0:+.2f}" + ("*" if (i, j) in best else " ") for j, value in enumerate(line))]
        for i, line in enumerate(values)
    ]
    title = (
        f"{report['models'][source]} up to block i (down), then {report['models'][target]} from block j (across): "
        "nats above the line"
    )
    return title, ["i \\ j", *map(str, range(depth_j + 1))], rows, values


def above(cell: dict) -> float:
    """Nats per token that the cell's better translation lies above the line (negative: below it)."""
    return cell["translations"][cell["chosen"]]["ce"] - cell["line"]


def front_table(report: dict, cost: str) -> tuple[list[str], list[list[str]], str]:
    """Header, rows and title of a Pareto front: the best model for every budget, which is a step function."""
    unit = {"flops": "block MFLOPs per token", "parameters": "million parameters"}[cost]
    rows = [
        [_describe(point, report), f"{point[cost] / 1e6:.3f}", f"{point['ce']:.3f}", _interval(point)]
        for point in report["fronts"][cost]
    ]
    return ["from this budget on", unit, "CE", "95 % interval"], rows, f"Best model at every budget of {unit}"


def best_table(report: dict) -> tuple[list[str], list[list[str]], str]:
    """Header, rows and title of the best layer j for every i."""
    rows = [
        [
            _describe(row, report) + ("" if row["within_budget"] else " (over budget)"),
            f"{row['flops'] / 1e6:.3f}",
            f"{row['ce']:.3f}",
            _interval(row),
            f"{row['line']:.3f}",
        ]
        for row in report["best_layers"]
    ]
    header = ["", "block MFLOPs per token", "CE", "95 % interval", "line"]
    return header, rows, f"Best j for every i: {report['rule']}"


def footnotes(report: dict) -> list[str]:
    a, b = report["donors"]["a"], report["donors"]["b"]
    cells = report["cells"]
    beaten = sum(cell["null"]["ce"] - cell["translations"][cell["chosen"]]["ce"] > SAME for cell in cells)
    return [
        f"{report['models']['a']}: CE {a['ce']:.3f}; {report['models']['b']}: CE {b['ce']:.3f}; "
        f"{report['tokens']['fit']:,} tokens fitted on, {report['tokens']['report']:,} scored.",
        f"{beaten} of {len(cells)} composites beat their null by more than {SAME} nats "
        "(no source: the target's embedding alone).",
        "Layers and fronts are chosen on the sweep split, numbers are from the report split; "
        "line = CE_source + share · (CE_target − CE_source).",
    ]


def _describe(point: dict, report: dict) -> str:
    if point.get("model") in ("a", "b"):
        return report["models"][point["model"]]
    models = report["models"]
    return f"{models[point['source']]}.{point['i']} → {models[point['target']]}.{point['j']} ({point['translation']})"


def _interval(point: dict) -> str:
    return f"{point['ce_low']:.3f} – {point['ce_high']:.3f}"


def card(report: dict) -> bytes:
    """README.md of the folder."""
    lines = [
        f"# {report['models']['a']} × {report['models']['b']}: every pair of layers",
        "",
        "Blocks 0 to i − 1 of one model, a translation fitted in closed form, the other's blocks from j on. `report.json` "
        "holds every cell with its translations, null, interval, KL, cost and line.",
        "",
        "![Cross-entropy above the line for every pair of layers, and the Pareto fronts](sweep.png)",
        "",
    ]
    for header, rows, title in (
        front_table(report, "flops"),
        front_table(report, "parameters"),
        best_table(report),
    ):
        lines += [f"## {title.partition(':')[0]}", ""]
        lines += [*markdown_table(header, rows), ""]
    lines += [f"Rule for the best j: {report['rule']}.", "", *(f"- {note}" for note in footnotes(report)), ""]
    return "\n".join(lines).encode()


def draw(report: dict, path: Path) -> None:
    """sweep.png: a heat map per direction, and cross-entropy against FLOPs and parameters with both fronts."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 11), layout="constrained")
    FigureCanvasAgg(figure)  # no display, and no global state of pyplot
    axes = figure.subplots(2, 2)
    for axis, (source, _) in zip(axes[0], swept_directions(report), strict=False):
        _draw_heat(figure, axis, report, source)
    if len(swept_directions(report)) == 1:
        axes[0][1].axis("off")
    for axis, cost in zip(axes[1], report["fronts"], strict=True):
        _draw_front(axis, report, cost)
    figure.savefig(path, dpi=100, metadata={"Software": None})  # no version: same inputs, same bytes


def _draw_heat(figure, axis, report: dict, source: str) -> None:
    _, _, _, values = heat(report, source)
    target = next(target for side, target in swept_directions(report) if side == source)
    image = axis.imshow(values, cmap="cividis_r", aspect="auto", origin="upper")
    axis.set_xticks(range(len(values[0])))
    axis.set_yticks(range(len(values)))
    axis.set_xlabel(f"j: {report['models'][target]} goes on at block j")
    axis.set_ylabel(f"i: {report['models'][source]} runs its first i blocks")
    axis.set_title(f"{report['models'][source]} → {report['models'][target]}, nats above the line")
    figure.colorbar(image, ax=axis, label="cross-entropy above the line, nats per token (lower is better)")
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
            axis.add_patch(_rectangle((row["j"] - 0.48, row["i"] - 0.48), 0.96, 0.96, **box))


def _rectangle(corner: tuple[float, float], width: float, height: float, **style):
    from matplotlib.patches import Rectangle

    return Rectangle(corner, width, height, **style)


def _draw_front(axis, report: dict, cost: str) -> None:
    scale = 1e6
    for (source, target), colour in zip(swept_directions(report), ("#3b6fb6", "#c98a1b"), strict=False):
        mine = [cell for cell in report["cells"] if cell["source"] == source]
        rows = [cell["translations"][cell["chosen"]] for cell in mine]
        costs = [(cell if cost == "flops" else row)[cost] / scale for cell, row in zip(mine, rows, strict=True)]
        label = f"{report['models'][source]} → {report['models'][target]}"
        axis.plot(costs, [row["ce"] for row in rows], ".", color=colour, alpha=0.6, label=label)
    points = report["fronts"][cost]
    axis.step([point[cost] / scale for point in points], [point["ce"] for point in points], where="post",
              color="black", linewidth=1, label="front (chosen on the sweep split)")  # fmt: skip
    for side, marker in (("a", "s"), ("b", "D")):
        donor = report["donors"][side]
        axis.plot(donor[cost] / scale, donor["ce"], marker, color="black", label=report["models"][side])
    lowest = min(point["ce"] for point in points)
    shown = sorted(cell["translations"][cell["chosen"]]["ce"] for cell in report["cells"])
    axis.set_ylim(lowest - 0.1, max(shown[int(0.9 * (len(shown) - 1))], report["donors"]["a"]["ce"] + 0.2,
                                    report["donors"]["b"]["ce"] + 0.2))  # fmt: skip
    axis.set_xlabel({"flops": "block MFLOPs per token", "parameters": "million parameters"}[cost])
    axis.set_ylabel("cross-entropy, nats per token")
    axis.set_title(f"Pareto front against {'FLOPs' if cost == 'flops' else cost}")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
