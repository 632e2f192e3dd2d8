"""A recurrent form: KL to the donor, by the share of the cache that its state takes."""

from matplotlib.figure import Figure

from drawings.models import wide
from stitch.report.figure import legend, logarithmic, marks, panels

KINDS = {
    "slots_by_head": ("slots by head", "composite", 0),
    "hybrid_by_head": ("hybrid by head", "composite", 1),
    "hedgehog_by_head": ("Hedgehog ×2 by head", "alternative", 0),
    "window_mean_by_head": ("window + mean by head", "alternative", 1),
    "slots": ("slots", "baseline", 0),
    "window": ("window alone", "baseline", 1),
    "hindsight": ("hindsight", "bound", 0),
    "null": ("null", "null", 0),
    "random_sizes": ("sizes at random", "null", 1),
}


def draw(lines: list[dict]) -> Figure:
    models = list(dict.fromkeys(line["model"] for line in lines))
    figure, axes = panels(len(models), 1, 2.5, sharey=True)
    for axis, model in zip(axes, models, strict=True):
        for key, (label, role, variant) in KINDS.items():
            points = [(line["share_percent"], line[key]) for line in lines if line["model"] == model and key in line]
            axis.plot(*zip(*points, strict=True), **marks(role, variant), label=label)
        logarithmic(axis, "x", sorted({line["share_percent"] for line in lines}))
        axis.set(title=wide(model), xlabel="state, percent of the cache", ylabel="KL to the donor, nats")
    logarithmic(axes[0], "y", (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1))
    legend(figure)
    return figure
