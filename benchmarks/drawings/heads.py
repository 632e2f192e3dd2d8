"""Fewer key heads: nats above the donor, by model and number of key heads left."""

from matplotlib.figure import Figure

from stitch.report.figure import interval, legend, logarithmic, marks, panels

METHODS = {
    "converted": ("converted", "composite", 0),
    "CARE + refit": ("CARE", "alternative", 0),
    "MHA2MLA + refit": ("MHA2MLA", "alternative", 1),
    "TransMLA + refit": ("TransMLA", "alternative", 2),
    "baseline:rotate-mean + refit": ("rotated mean", "baseline", 0),
    "baseline:first head + refit": ("first head", "baseline", 1),
    "baseline:mean pooling + refit": ("mean pooling", "baseline", 2),
    "null:random + refit": ("random heads", "null", 0),
    "null:random latent + refit": ("random latent", "null", 1),
}


def draw(lines: list[dict]) -> Figure:
    figure, (axis,) = panels(1, 1, 0.45 * len(lines))
    for name, (label, role, variant) in METHODS.items():
        for number, line in enumerate(lines):
            for row in line["results"]:
                if row["name"] == name:
                    interval(axis, -number, row, marks(role, variant), label, "above")
    names = [f"{line['model']}\n{line['key_heads']} → {line['left']}, fit at {line['fit_window']:,}" for line in lines]
    axis.set_yticks(range(0, -len(lines), -1), names)
    logarithmic(axis, "x", (0.003, 0.01, 0.03, 0.1, 0.3, 1, 3))
    axis.set(title="Key heads of each model, before → after", xlabel="nats above the donor")
    legend(figure)
    return figure
