"""Draws what `few_pairs.py` printed: `python benchmarks/_curves.py OUT.png LINES.jsonl`; means over seeds, bands their range."""

import json
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib.pyplot as plt

DRAWN = {  # row at n pairs: its row without pairs, colour
    "affine": (None, "#9a9a9a"),
    "pairs alone": (None, "black"),
    "look-ups prior": ("look-ups", "#4f9d69"),
    "means prior": ("means+free", "#3b6fb6"),
    "matched prior": ("matched+look-ups", "#c0504d"),
    "means prior, codes": ("means+free, codes", "#8a63b0"),
    "means prior, exemplars": ("means+free, exemplars", "#d99a3a"),
}
NONE_AT = 30  # where no pairs are drawn on the logarithmic axis


def main() -> None:
    out, lines = sys.argv[1:]
    found: dict[str, dict[str, dict[int, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for line in Path(lines).read_text().splitlines():
        result = json.loads(line)
        rows = {row["name"]: row["ce"] for row in result["results"]}
        for name, (without, _) in DRAWN.items():
            for key, ce in rows.items():
                pairs, _, row = key.partition(":")
                if row == name or (pairs == "0" and row == without):
                    found[result["direction"]][name][int(pairs)].append(ce)
    figure, axes = plt.subplots(1, len(found), figsize=(6.5 * len(found), 4.6), squeeze=False)
    for axis, (direction, curves) in zip(axes[0], found.items(), strict=True):
        for name, points in curves.items():
            x = sorted(points)
            mean = [sum(points[n]) / len(points[n]) for n in x]
            at = [n or NONE_AT for n in x]
            axis.plot(at, mean, marker="o", markersize=3, color=DRAWN[name][1], label=name)
            axis.fill_between(
                at, [min(points[n]) for n in x], [max(points[n]) for n in x], color=DRAWN[name][1], alpha=0.15
            )
        best = min(min(values) for curve in curves.values() for points in [curve] for values in points.values())
        axis.set_xscale("log")
        axis.set_ylim(best - 0.05, best + 1.2)
        axis.set_xticks([NONE_AT, 100, 300, 1000, 3000, 10000], ["none", "100", "300", "1k", "3k", "10k"])
        axis.set_title(direction.replace("-", " → "))
        axis.set_xlabel("paired tokens")
        axis.set_ylabel("cross-entropy, nats per token")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main()
