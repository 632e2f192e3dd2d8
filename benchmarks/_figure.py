"""Draws the rows of one or two report.json files: `python benchmarks/_figure.py OUT.png REPORT.json [REPORT.json]`."""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt

COLOURS = {
    "translation": "#3b6fb6",
    "null": "#c0504d",
    "floor": "#9a9a9a",
    "ceiling": "#4f9d69",
    "reference": "#8a63b0",
}


def main() -> None:
    out, *paths = sys.argv[1:]
    reports = [json.loads(Path(path).read_text()) for path in paths]
    figure, axes = plt.subplots(1, len(reports), figsize=(7.2 * len(reports), 7), squeeze=False)
    for axis, report in zip(axes[0], reports, strict=True):
        rows = [row for row in report["results"] if row["ce_low"] is not None and not row["name"].startswith("floor")]
        for height, row in enumerate(reversed(rows)):
            colour = COLOURS.get(row["name"].partition(":")[0], "black")
            axis.plot([row["ce_low"], row["ce_high"]], [height, height], color=colour, linewidth=2, alpha=0.5)
            axis.plot(row["ce"], height, "o", color=colour)
        axis.set_yticks(range(len(rows)), [row["name"] for row in reversed(rows)])
        line = next(row["ce"] for row in report["results"] if row["name"] == "line")
        axis.axvline(line, color="black", linestyle=":", linewidth=1)
        axis.text(line, len(rows) - 0.4, " line", fontsize=8)
        site = report["site"]
        axis.set_title(f"{report['models']['a']} to block {site['a']}, {report['models']['b']} from block {site['b']}")
        axis.set_xlabel("cross-entropy, nats per token (95 % interval by document)")
        axis.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main()
