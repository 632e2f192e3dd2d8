"""Draws the README's picture from the report of `make demo`.

    python docs/figures/demo.py build/demo/report.json docs/figures/demo.png

Left, cross-entropy with its 95 % interval over documents. These intervals are wide, because documents differ much more than
models do, so the right half shows what can be compared: the paired difference of every row to the composite.
"""

import json
import sys
from pathlib import Path

from stitch.pages.rows import role
from stitch.report.figure import interval, legend, marks, panels, rule, save, style, wide
from stitch.report.palette import ROLES

ROWS = {
    "a": "A, the whole GPT-2",
    "b": "B, the whole Llama",
    "composite": "composite:\n3 blocks of A, 4 of B",
    "reference:own-tables": "B, tables for\nits first blocks",
    "reference:b-skip": "B, its own blocks\nin place of A's",
    "reference:b-shortened": "B without some blocks",
    "null:no-source": "look-ups without A",
    "null:untrained-a": "composite of an A\nwith random weights",
    "translation:affine": "affine map\nfrom A to B",
}


@style()
def main() -> None:
    source, target = sys.argv[1:]
    report = json.loads(Path(source).read_text())
    rows = {row["name"]: row for row in report["results"]}
    paired = {}
    for item in report["differences"]:
        low, high = item["ce_low"], item["ce_high"]
        if item["name"] == "composite":
            paired[item["minus"]] = {"ce": -item["ce"], "ce_low": -high, "ce_high": -low}
        elif item["minus"] == "composite":
            paired[item["name"]] = {"ce": item["ce"], "ce_low": low, "ce_high": high}

    figure, (left, right) = panels(1, 2, 3.6, sharey=True)
    for number, name in enumerate(ROWS):
        how = marks(role(name))
        interval(left, -number, rows[name], how, ROLES[role(name)].name)
        left.annotate(
            f"{rows[name]['ce']:.3f}", (rows[name]["ce"], -number), (0, 4), textcoords="offset points", ha="center"
        )
        if name != "composite":
            worse = paired[name]
            interval(right, -number, worse, how)
            right.annotate(
                f"{worse['ce']:+.3f}",
                (max(worse["ce_high"], 0), -number),
                (5, 0),
                textcoords="offset points",
                va="center",
            )
    rule(right, 0, upright=True, role="composite")
    left.set_yticks(range(0, -len(ROWS), -1), list(ROWS.values()))
    left.set(xlabel="cross-entropy, nats", ylim=(0.6 - len(ROWS), 0.8))
    right.set(xlabel="worse than the\ncomposite by, nats", xlim=(-0.3, 1.4))
    figure.suptitle(f"A = {wide(report, 'a')}, B = {wide(report, 'b')}")
    legend(figure, 3)
    save(figure, Path(target))


if __name__ == "__main__":
    main()
