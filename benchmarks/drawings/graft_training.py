"""Training from a graft: loss and induction by tokens trained on, a line per seed."""

from matplotlib.figure import Figure

from drawings.models import wide
from stitch.report.figure import legend, marks, panels

ARMS = {
    "donor": ("the donor, untouched", "a", 0),
    "graft": ("graft", "composite", 0),
    "fresh": ("fresh", "baseline", 0),
    "noise": ("noise in its place", "null", 0),
    "embeddings": ("embeddings alone", "null", 1),
}
PANELS = {"ce": "held-out cross-entropy, nats", "right": "induction, share right"}


def draw(lines: list[dict]) -> Figure:
    figure, axes = panels(len(PANELS), 1, 2.3)
    for axis, (key, what) in zip(axes, PANELS.items(), strict=True):
        for arm, (label, role, variant) in ARMS.items():
            for line in lines:
                if line["arm"] == arm:
                    at = [point["tokens"] / 1e6 for point in line["curve"]]
                    axis.plot(at, [point[key] for point in line["curve"]], **marks(role, variant), label=label)
        axis.set(
            title=f"{wide('demo:induction')} into a small Llama", xlabel="tokens trained on, millions", ylabel=what
        )
    legend(figure)
    return figure
