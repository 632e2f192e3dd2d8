"""N-gram tables for the first blocks: nats above the donor, by blocks dropped and by tokens in the tables."""

from collections import Counter

from matplotlib.figure import Figure

from drawings.models import wide
from stitch.report.figure import legend, logarithmic, marks, panels, whole_numbers

METHODS = {
    "converted": ("tables in the bytes of the blocks", "composite", 0),
    "unpacked": ("tables of any size", "composite", 1),
    "passthrough": ("blocks removed, nothing else", "alternative", 0),
    "ridge_alone": ("ridge alone", "baseline", 0),
    "random_table": ("random tables", "null", 0),
}
TICKS = (0.01, 0.03, 0.1, 0.3, 1, 3)


def draw(lines: list[dict]) -> Figure:
    """A panel for every model tried at several depths, and one for every model and depth tried with several amounts of text."""
    depths = Counter((line["model"], line["tokens"]["fit"]) for line in lines)
    by_depth = [one for one, count in depths.items() if count > 2]
    by_tokens = [one for one, count in Counter((line["model"], line["drop"]) for line in lines).items() if count > 2]
    figure, axes = panels(len(by_depth) + len(by_tokens), 1, 2.0)
    for axis, (model, tokens) in zip(axes, by_depth, strict=False):
        own = sorted(
            (line["drop"], line) for line in lines if (line["model"], line["tokens"]["fit"]) == (model, tokens)
        )
        for key, (label, role, variant) in METHODS.items():
            axis.plot(
                [at for at, _ in own], [line["cost"][key] for _, line in own], **marks(role, variant), label=label
            )
        axis.set(title=f"{wide(model)}, {tokens:,} tokens in the tables", xlabel="blocks dropped")
        whole_numbers(axis, "x")
    for axis, (model, dropped) in zip(axes[len(by_depth) :], by_tokens, strict=True):
        own = sorted(
            (line["tokens"]["fit"], line) for line in lines if (line["model"], line["drop"]) == (model, dropped)
        )
        for key, (label, role, variant) in METHODS.items():
            axis.plot(
                [at for at, _ in own], [line["cost"][key] for _, line in own], **marks(role, variant), label=label
            )
        axis.set(title=f"{wide(model)}, {dropped} blocks dropped", xlabel="tokens in the tables")
        logarithmic(axis, "x", [at for at, _ in own])
    for axis in axes:
        logarithmic(axis, "y", TICKS)
        axis.set(ylabel="nats above the donor")
    legend(figure)
    return figure
