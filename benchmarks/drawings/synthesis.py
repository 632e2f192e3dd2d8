"""Precision of compiled circuits: margins of nearly orthogonal states by dimension, and soft patterns by rank."""

from matplotlib.figure import Figure

from stitch.report.figure import legend, logarithmic, marks, panels, series

STATES = (16, 64, 256)
WAYS = {
    "fitted": ("divergence of attention", "composite", 0),
    "naive": ("SVD of the logarithm", "baseline", 0),
    "completed": ("the same, causal, rows centred", "baseline", 1),
}


def draw(lines: list[dict]) -> Figure:
    parts = {line["part"]: line["results"] for line in lines}
    figure, (states, *patterns) = panels(1 + len(parts["ranks"]), 1, 2.2)
    for number, how in zip(STATES, series(len(STATES)), strict=True):
        rows = [row for row in parts["vsa"] if row["states"] == number and "predicted" in row]
        same = [row["dimension"] for row in parts["vsa"] if row["states"] == number and "predicted" not in row]
        at, points = [row["dimension"] for row in rows], {**how, "linestyle": "none"}
        states.plot(at, [row["predicted"] for row in rows], color=how["color"], linestyle=how["linestyle"])
        states.plot(at, [row["fp32"]["margin"] for row in rows], **points)
        states.plot(at, [row["bf16"]["margin"] for row in rows], **{**points, "fillstyle": "none", "markersize": 7})
        states.plot(same, [0] * len(same), **{**points, "marker": "x"})
        states.plot([], [], **how, label=f"{number} states")
    logarithmic(states, "x", (8, 16, 32, 64, 128, 256))
    marked = "line: predicted, filled: fp32, hollow: bf16,\n×: two vectors are the same"
    states.set(title="States as nearly orthogonal vectors", xlabel=f"dimensions of the vectors\n{marked}",
               ylabel="smallest margin, share")  # fmt: skip
    for axis, part in zip(patterns, parts["ranks"], strict=True):
        for way, (label, role, variant) in WAYS.items():
            found = [(row["rank"], (row if way == "fitted" else row[way])["mean"]) for row in part["curve"]]
            axis.plot(*zip(*found, strict=True), **marks(role, variant), label=label)
        logarithmic(axis, "x", [row["rank"] for row in part["curve"]])
        logarithmic(axis, "y", (0.0001, 0.001, 0.01, 0.1, 1))
        axis.set(title=f"Soft pattern {part['pattern']} over 256 tokens", xlabel="rank of queries and keys",
                 ylabel="attention elsewhere", ylim=(7e-5, 1.3))  # fmt: skip
    legend(figure)
    return figure
