"""Fewer key heads: nats above the donor, by model and number of key heads left."""

from matplotlib.figure import Figure

from stitch.report.figure import interval, legend, logarithmic, marks, panels

METHODS = {
    "converted": ("converted", "composite", 0),
    "contraction": ("contraction, not refitted", "alternative", 0),
    "rotate_mean_refit": ("rotated mean", "baseline", 0),
    "first_head_refit": ("first head", "baseline", 1),
    "mean_pooling_refit": ("mean pooling", "baseline", 2),
    "random_refit": ("random", "null", 0),
}


def draw(lines: list[dict]) -> Figure:
    figure, (axis,) = panels(1, 1, 3.4)
    for key, (label, role, variant) in METHODS.items():
        for number, line in enumerate(lines):
            interval(axis, -number, line, marks(role, variant), label, key)
    names = [f"{line['model']}\n{line['key_heads']} → {line['left']}, fit at {line['fit_window']:,}" for line in lines]
    axis.set_yticks(range(0, -len(lines), -1), names)
    logarithmic(axis, "x", (0.03, 0.1, 0.3, 1, 3))
    axis.set(title="Key heads of each model, before → after", xlabel="nats above the donor")
    legend(figure)
    return figure
