"""Cross-entropy against bytes on disk, by how many bytes the seam may take. The untouched models are points."""

from matplotlib.figure import Figure

from drawings.models import wide
from stitch.report.figure import legend, logarithmic, marks, panels

ROWS = {
    "a": ("A", "a", 0),
    "b": ("B", "b", 0),
    "composite": ("composite", "composite", 0),
    "own-tables": ("B with tables", "alternative", 0),
    "a-own-tables": ("A with tables", "alternative", 1),
}


def draw(lines: list[dict]) -> Figure:
    pairs = list(dict.fromkeys((line["source"], line["target"]) for line in lines))
    figure, axes = panels(len(pairs), 1, 2.3)
    for axis, (source, target) in zip(axes, pairs, strict=True):
        own = [line for line in lines if (line["source"], line["target"]) == (source, target)]
        for name, (label, role, variant) in ROWS.items():
            there = [line[name] for line in own if name in line]
            at, values = [row["bytes_m"] for row in there], [row["ce"] for row in there]
            axis.plot(at, values, **marks(role, variant, line=name not in ("a", "b")), label=label)
        logarithmic(axis, "x", (10, 20, 40, 80))
        axis.set(title=f"A = {source}, B = {target}", xlabel="MB on disk", ylabel="cross-entropy, nats per token")
    figure.suptitle(" and ".join(map(wide, pairs[0])))
    legend(figure)
    return figure
