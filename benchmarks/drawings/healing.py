"""Further training: cross-entropy by tokens trained on, and the paired difference to B. Zero tokens are at the left edge."""

from matplotlib.figure import Figure

from drawings.models import wide
from stitch.report.figure import legend, logarithmic, marks, panels, rule

A, B = "demo:gpt2", "demo:llama"
ARMS = {
    "composite": ("composite", 0),
    "composite, seam only": ("composite", 1),
    "own tables": ("alternative", 0),
    "own tables, seam only": ("alternative", 1),
    "shortened": ("alternative", 2),
    "whole B": ("b", 0),
    "fresh": ("baseline", 0),
    "random blocks": ("null", 0),
}
PANELS = {
    "ce": (f"{wide(A)} × {wide(B)}", "cross-entropy, nats", None),
    "over_b": (f"the same minus {B}, paired", "nats", (-0.05, 0.3)),
}
TICKS = (65_536, 262_144, 1_048_576, 3_000_000)


def draw(lines: list[dict]) -> Figure:
    points = [line for line in lines if "ce" in line]
    left = min(line["tokens"] for line in points if line["tokens"]) / 2
    figure, axes = panels(len(PANELS), 1, 2.6)
    for axis, (key, (title, what, ends)) in zip(axes, PANELS.items(), strict=True):
        for role, donor in (("a", A), ("b", B)):
            value = next(line[key] for line in points if line["arm"] == donor)
            rule(axis, value, role=role, label=donor, dash="--" if role == "a" else ":")
        for arm, (role, variant) in ARMS.items():
            if not (own := [line for line in points if line["arm"] == arm]):
                continue
            at, how = [max(line["tokens"], left) for line in own], marks(role, variant)
            axis.plot(at, [line[key] for line in own], **how, label=arm)
            low, high = ([line[f"{key}_{end}"] for line in own] for end in ("low", "high"))
            axis.fill_between(at, low, high, color=how["color"], alpha=0.15)
        logarithmic(axis, "x")
        axis.set_xticks([left, *TICKS], ["none", *(f"{tick:,}" for tick in TICKS)])
        axis.set(title=title, xlabel="tokens trained on", ylabel=what, ylim=ends)
    legend(figure)
    return figure
