"""Draws the README's picture from the report of `make demo`.

    python docs/figures/demo.py build/demo/report.json docs/figures/demo.png

Left, cross-entropy with its 95 % interval over documents. These intervals are wide, because documents differ much more than
models do, so the right half shows what can be compared: the paired difference of every row to the composite.
"""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt

ROWS = {
    "b": ("B, the whole Llama", "#2f2f2f"),
    "composite": ("composite: 3 blocks of A, 4 of B", "#3b6fb6"),
    "reference:own-tables": ("B alone, tables for its first blocks", "#c0504d"),
    "reference:b-skip": ("B's own blocks in the place of A's", "#c0504d"),
    "a": ("A, the whole GPT-2", "#2f2f2f"),
    "reference:b-shortened": ("B without some blocks", "#c0504d"),
    "null:no-source": ("look-ups alone, without A", "#8a8a8a"),
    "translation:affine": ("baseline: affine map from A to B", "#8a8a8a"),
}


def main() -> None:
    source, target = sys.argv[1:]
    report = json.loads(Path(source).read_text())
    rows = {row["name"]: row for row in report["results"]}
    paired = {item["minus"]: item for item in report["differences"] if item["name"] == "composite"}

    plt.rcParams.update({"font.size": 10})
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), sharey=True, width_ratios=[1.25, 1])
    heights = range(len(ROWS) - 1, -1, -1)
    for height, (name, (_, colour)) in zip(heights, ROWS.items(), strict=True):
        row = rows[name]
        left.barh(height, row["ce"], height=0.6, color=colour, alpha=0.85)
        left.plot([row["ce_low"], row["ce_high"]], [height, height], color="black", linewidth=1.2)
        left.text(0.08, height, f"{row['ce']:.3f}", va="center", color="white", fontweight="bold")
        if name == "composite":
            right.plot(0, height, "D", color=colour)
            continue
        low, high = -paired[name]["ce_high"], -paired[name]["ce_low"]
        right.plot([low, high], [height, height], color=colour, linewidth=2.5)
        right.plot(-paired[name]["ce"], height, "o", color=colour)
        beside, side = (high + 0.04, "left") if high > 0 else (low - 0.04, "right")
        right.text(beside, height, f"{-paired[name]['ce']:+.3f}", va="center", ha=side)
    left.set_yticks(heights, [label for label, _ in ROWS.values()])
    left.set_xlabel("cross-entropy, nats per token (lower is better)")
    right.axvline(0, color="#3b6fb6", linewidth=1, linestyle=":")
    right.set_xlabel("worse than the composite by (nats, paired)")
    right.set_xlim(-0.6, 1.5)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="x", alpha=0.25)
        axis.set_axisbelow(True)
    figure.tight_layout()
    figure.savefig(target, dpi=120, metadata={"Software": None})


if __name__ == "__main__":
    main()
