"""Cross-entropy by the number of nonzero weights of a map, for several bases, in both directions: means over seeds, in
bands over their range.
"""

from collections import defaultdict

from matplotlib.figure import Figure

from drawings.models import wide
from stitch.report.figure import curve, legend, logarithmic, marks, panels, rule

BASES = {  # label, role and variant
    "sae": ("SAE features", "composite", 0),
    "pca": ("principal components", "baseline", 0),
    "neurons": ("neurons", "baseline", 1),
    "exemplars": ("exemplars", "null", 0),
    "untrained": ("untrained SAE", "null", 1),
    "shuffled": ("shuffled", "null", 2),
}
HEIGHT = 1.5  # nats shown, from the lowest point on


def draw(lines: list[dict]) -> Figure:
    directions = defaultdict(list)
    for line in lines:
        directions[" → ".join(wide(f"demo:{model}") for model in line["direction"].split("-"))].append(line)
    figure, axes = panels(len(directions), 1, 2.4)
    for axis, (direction, own) in zip(axes, directions.items(), strict=True):
        found, dense = points(own)
        for name, (label, role, variant) in BASES.items():
            curve(axis, sorted(found[name].items()), marks(role, variant), label)
        lowest = min(min(values) for of in found.values() for values in of.values())
        logarithmic(axis, "x", sorted({at for of in found.values() for at in of}))
        axis.set(
            title=direction,
            xlabel="nonzero weights per feature of B's SAE",
            ylabel="cross-entropy, nats per token",
            ylim=(lowest - 0.05, lowest + HEIGHT),
        )
        rule(axis, sum(dense) / len(dense), role="bound", label="dense ridge")
    legend(figure)
    return figure


def points(lines: list[dict]) -> tuple[dict[str, dict[int, list[float]]], list[float]]:
    """Losses of every seed by basis and number of weights, and those of dense ridge."""
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    dense = []
    for row in (row for line in lines for row in line["results"]):
        basis, _, m = row["name"].partition(", m=")
        if basis in BASES and m:
            found[basis][int(m)].append(row["ce"])
        elif row["name"] == "dense":
            dense.append(row["ce"])
    return found, dense
