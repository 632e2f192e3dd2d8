"""Draws the output of `translations.py`, `few_pairs.py` or `readable.py`: `python benchmarks/_curves.py OUT.png
LINES.jsonl`.

Lines are means over seeds; bands show their range.
"""

import sys
from collections import defaultdict
from collections.abc import Iterator

import matplotlib.pyplot as plt
from _lines import read

COLOURS = ("#c0504d", "#3b6fb6", "#4f9d69", "#8a63b0", "#d99a3a", "#9a9a9a", "black", "#7a5230")
NONE_AT = 30  # where results without pairs are drawn on the logarithmic axis
WITHOUT_PAIRS = {  # each row with n pairs, and the row that stands for it at n = 0
    "matched prior": "matched+look-ups",
    "means prior": "means+free",
    "look-ups prior": "look-ups",
    "means prior, codes": "means+free, codes",
    "means prior, exemplars": "means+free, exemplars",
    "means prior, rbf": "means+free, rbf",
    "affine": None,
    "pairs alone": None,
}
BASES = ("sae", "pca", "exemplars", "neurons", "untrained", "shuffled")
GRID = (
    *("translation:routed+tables", "translation:features+free+tables", "translation:affine+free", "null:no-source"),
    *("translation:features", "translation:cross-code", "translation:affine", "null:untrained-sae"),
)
Point = tuple[str, int, float]  # curve, x, cross-entropy


def few_pairs(result: dict) -> Iterator[Point]:
    for row in result["results"]:
        pairs, _, name = row["name"].partition(":")
        for curve, without in WITHOUT_PAIRS.items():
            if name == curve or (pairs == "0" and name == without):
                yield curve, int(pairs) or NONE_AT, row["ce"]


def readable(result: dict) -> Iterator[Point]:
    for row in result["results"]:
        curve, _, m = row["name"].partition(", m=")
        if curve in BASES:
            yield curve, int(m), row["ce"]


def translations(result: dict) -> Iterator[Point]:
    for row in result["results"]:
        if row["name"] in GRID:
            yield row["name"], result["tokens"]["fit"], row["ce"]


KINDS = {
    "translations": (translations, "paired tokens", 2.0),
    "few_pairs": (few_pairs, "paired tokens", 1.2),
    "readable": (readable, "nonzero weights per feature of B's SAE", 1.5),
}


def main() -> None:
    out, lines = sys.argv[1:]
    results = read(lines)
    points, axis_name, height = KINDS[results[0]["benchmark"]]
    found: dict[str, dict[str, dict[int, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    dense: dict[str, list[float]] = defaultdict(list)
    for result in results:
        direction = result.get("direction") or "-".join(
            name.removeprefix("demo:") for name in result["models"].values()
        )
        for curve, x, ce in points(result):
            found[direction][curve][x].append(ce)
        dense[direction] += [row["ce"] for row in result["results"] if row["name"] == "dense"]
    names = dict.fromkeys(name for curves in found.values() for name in curves)
    colours = dict(zip(names, COLOURS, strict=False))
    figure, axes = plt.subplots(1, len(found), figsize=(6.5 * len(found), 4.6), squeeze=False)
    for axis, (direction, curves) in zip(axes[0], found.items(), strict=True):
        for name, values in sorted(curves.items(), key=lambda curve: -max(curve[1][min(curve[1])])):
            x, colour = sorted(values), colours[name]
            axis.plot(x, [sum(values[n]) / len(values[n]) for n in x], "o-", markersize=3, color=colour, label=name)
            axis.fill_between(x, [min(values[n]) for n in x], [max(values[n]) for n in x], color=colour, alpha=0.15)
        lowest = min(min(ce) for values in curves.values() for ce in values.values())
        if dense[direction]:
            axis.axhline(
                sum(dense[direction]) / len(dense[direction]), color="black", linestyle=":", label="dense ridge"
            )
        axis.set_xscale("log")
        axis.set_ylim(lowest - 0.05, lowest + height)
        ticks = sorted({x for values in curves.values() for x in values})
        axis.set_xticks(ticks, ["none" if tick == NONE_AT else f"{tick:,}" for tick in ticks])
        axis.set_title(direction.replace("-", " → "))
        axis.set_xlabel(axis_name)
        axis.set_ylabel("cross-entropy, nats per token")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main()
