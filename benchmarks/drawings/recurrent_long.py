"""Reading beyond the donor's context: cross-entropy by how far back the text begins, at equal bytes of state."""

from matplotlib.figure import Figure

from drawings.models import wide
from stitch.report.figure import legend, logarithmic, marks, panels

ROWS = {
    "slots by head": ("slots by head", "composite", 0),
    "no fast weights": ("slots by head alone", "composite", 1),
    "re-reading": ("donor re-reading", "bound", 0),
    "donor": ("donor", "a", 0),
    "streaming": ("StreamingLLM", "baseline", 0),
    "duo": ("DuoAttention's keys", "baseline", 1),
    "h2o": ("H2O", "alternative", 0),
    "snapkv": ("SnapKV", "alternative", 1),
    "adakv": ("Ada-KV", "alternative", 2),
    "tail": ("null: window + mean", "null", 0),
    "window": ("window", "null", 1),
    "fast weights": ("fast weights alone", "composite", 2),
}
TITLES = {"documents": "whole documents", "streams": "streams of documents"}


def draw(lines: list[dict]) -> Figure:
    figure, axes = panels(len(TITLES), 1, 2.2, sharex=True)
    for axis, (text, title) in zip(axes, TITLES.items(), strict=True):
        found = {line["name"]: line for line in lines if line["kind"] == "reading" and line["text"] == text}
        for name, (label, role, variant) in ROWS.items():
            if name in found:
                points = [(bin["contexts"], bin["ce"]) for bin in found[name]["bins"]]
                axis.plot(*zip(*points, strict=True), **marks(role, variant), label=label)
        logarithmic(axis, "x", (1, 4, 8, 16, 32))
        logarithmic(axis, "y", (2, 2.5, 3, 3.5, 4, 5, 6))
        axis.set(title=f"{wide('demo:llama')}, {title}", ylabel="nats per token")
    axes[-1].set(xlabel="read so far, up to so many of the donor's contexts")
    legend(figure)
    return figure
