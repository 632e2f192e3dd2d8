"""The picture of a depth sweep. Needs matplotlib."""

from pathlib import Path

from stitch.report.depth import ROWS, best_in, heat, kinds, rows

LEAST = 0.01  # nats; smaller losses have the colour of this one, larger ones are on a logarithmic scale
MOST_NUMBERS = 200  # ranges; larger maps show colours alone


def draw_depth(report: dict, path: Path) -> None:
    """depth.png: a map of loss per kind and row, and the best ranges' loss on the report split against the number of blocks."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [(kind, row) for kind in kinds(report) for row in rows(report)]
    figure = Figure(figsize=(14, 3.6 * (len(shown) + 1)), layout="constrained")
    FigureCanvasAgg(figure)  # neither a display nor the global state of pyplot is needed
    axes = figure.subplots(len(shown) + 1, 1)
    for axis, (kind, row) in zip(axes, shown, strict=False):
        _draw_map(figure, axis, report, kind, row)
    _draw_best(axes[-1], report)
    # Without matplotlib's version in it: the same inputs give the same bytes.
    figure.savefig(path, dpi=100, metadata={"Software": None})


def _draw_map(figure, axis, report: dict, kind: str, row: str) -> None:
    """Nats above the whole model by first block and length; the best first block of each length is framed."""
    import numpy as np
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Rectangle

    _, header, texts, values = heat(report, kind, row)
    lengths, firsts = [line[0] for line in texts], header[1:]
    every = [cell["sweep_ce"][name] - report["whole"]["sweep_ce"] for cell in report["cells"] for name in rows(report)]
    scale = LogNorm(LEAST, max(*every, 10 * LEAST))  # the same in all maps
    image = axis.imshow(
        np.clip(np.array(values), LEAST, None), cmap="cividis_r", norm=scale, aspect="auto", origin="lower"
    )
    axis.set_xticks(range(len(firsts)), firsts)
    axis.set_yticks(range(len(lengths)), lengths)
    axis.set_xlabel(f"first block {kind}")
    axis.set_ylabel(f"blocks {kind}")
    axis.set_title(f"{report['models']['a']}, blocks {kind}, {ROWS[row].replace('`', '')}")
    figure.colorbar(image, ax=axis, label="nats above the whole model")
    numbered = len(values) * len(values[0]) <= MOST_NUMBERS
    for y, line in enumerate(texts):
        for x, text in enumerate(line[1:]):
            if text.endswith("*"):
                box = {"fill": False, "edgecolor": "crimson", "linewidth": 2}
                axis.add_patch(Rectangle((x - 0.48, y - 0.48), 0.96, 0.96, **box))
            if numbered and text:
                dark = scale(max(values[y][x], LEAST)) > 0.5  # cividis_r is dark where values are high
                axis.text(
                    x, y, text.strip(" *+"), ha="center", va="center", fontsize=7, color="white" if dark else "black"
                )


def _draw_best(axis, report: dict) -> None:
    """Nats above the whole model of the best range of each length, with intervals, and of other ranges."""
    for number, kind in enumerate(kinds(report)):
        for row, style in zip(rows(report), ("o--", "s-"), strict=False):
            found = best_in(report, kind, row)
            points = [next(item for item in one["rows"] if item["name"] == row) for one in found]
            at, losses = [one["blocks"] for one in found], [point["minus_whole"] for point in points]
            middle = [loss["ce"] for loss in losses]
            ends = [[loss["ce"] - loss["ce_low"] for loss in losses], [loss["ce_high"] - loss["ce"] for loss in losses]]
            axis.errorbar(at, middle, yerr=ends, fmt=style, color=f"C{number}", capsize=3, label=f"{kind}, {row}")
            elsewhere = [
                (one["blocks"], point["null_ce"] - report["whole"]["ce"])
                for one, point in zip(found, points, strict=True)
                if "null_ce" in point
            ]
            if elsewhere:
                axis.plot(*zip(*elsewhere, strict=True), style[0], color=f"C{number}", alpha=0.35, mfc="none",
                          label=f"{kind}, {row}: as many blocks elsewhere")  # fmt: skip
    axis.axhline(0, color="black", linewidth=1)
    axis.set_yscale("symlog", linthresh=0.1)
    axis.set_xlabel("blocks that run")
    axis.set_ylabel("nats above the whole model, report split")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
