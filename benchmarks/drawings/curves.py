"""Cross-entropy by an amount, in both directions: means over seeds, in bands over their range."""

from collections import defaultdict
from collections.abc import Callable, Iterator

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from drawings.models import wide
from stitch.report.figure import curve, legend, logarithmic, marks, panels, rule

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
Looks = dict[str, tuple[str, str, int]]  # by the name of a curve: its label, role and variant
Point = tuple[str, int, float]  # curve, place, cross-entropy
FEW_PAIRS: Looks = {
    "matched prior": ("prior of matched features", "composite", 0),
    "means prior, codes": ("prior of means, SAE codes", "composite", 1),
    "means prior": ("prior of means", "alternative", 0),
    "look-ups prior": ("prior of look-ups", "alternative", 1),
    "affine": ("affine", "baseline", 0),
    "pairs alone": ("pairs alone", "baseline", 1),
    "means prior, exemplars": ("prior of means, exemplars", "null", 0),
    "means prior, rbf": ("prior of means, RBF", "null", 1),
}
BASES: Looks = {
    "sae": ("SAE features", "composite", 0),
    "pca": ("principal components", "baseline", 0),
    "neurons": ("neurons", "baseline", 1),
    "exemplars": ("exemplars", "null", 0),
    "untrained": ("untrained SAE", "null", 1),
    "shuffled": ("shuffled", "null", 2),
}
GRID: Looks = {
    "translation:routed+tables": ("routed+tables", "composite", 0),
    "translation:features+free+tables": ("features+free+tables", "composite", 1),
    "translation:features": ("features", "composite", 2),
    "null:no-source": ("no source", "alternative", 0),
    "translation:affine+free": ("affine+free", "baseline", 0),
    "translation:affine": ("affine", "baseline", 1),
    "translation:cross-code": ("cross-code", "baseline", 2),
    "null:untrained-sae": ("untrained SAE", "null", 0),
}


def few_pairs(lines: list[dict]) -> Figure:
    def points(row: dict, _: dict) -> Iterator[Point]:
        pairs, _, name = row["name"].partition(":")
        for each, without in WITHOUT_PAIRS.items():
            if name == each or (pairs == "0" and name == without):
                yield each, int(pairs) or NONE_AT, row["ce"]

    figure, axes = _draw(lines, points, FEW_PAIRS, "paired tokens", 1.2)
    for axis in axes:
        ticks = [NONE_AT, 100, 300, 1_000, 3_000, 10_000]
        axis.set_xticks(ticks, ["none", *(f"{tick:,}" for tick in ticks[1:])])
    legend(figure)
    return figure


def readable(lines: list[dict]) -> Figure:
    def points(row: dict, _: dict) -> Iterator[Point]:
        basis, _, m = row["name"].partition(", m=")
        if basis in BASES and m:
            yield basis, int(m), row["ce"]

    figure, axes = _draw(lines, points, BASES, "nonzero weights per feature of B's SAE", 1.5)
    for axis, own in zip(axes, _by_direction(lines).values(), strict=True):
        dense = [row["ce"] for line in own for row in line["results"] if row["name"] == "dense"]
        rule(axis, sum(dense) / len(dense), role="bound", label="dense ridge")
    legend(figure)
    return figure


def translations(lines: list[dict]) -> Figure:
    def points(row: dict, line: dict) -> Iterator[Point]:
        if row["name"] in GRID:
            yield row["name"], line["tokens"]["fit"], row["ce"]

    figure, _ = _draw(lines, points, GRID, "paired tokens", 1.5)
    legend(figure)
    return figure


def _by_direction(lines: list[dict]) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = defaultdict(list)
    for line in lines:
        models = line["direction"].split("-") if "direction" in line else line["models"].values()
        found[" → ".join(wide(f"demo:{model.removeprefix('demo:')}") for model in models)].append(line)
    return found


def _draw(
    lines: list[dict], points: Callable[[dict, dict], Iterator[Point]], looks: Looks, across: str, height: float
) -> tuple[Figure, list[Axes]]:
    """A panel per direction, `height` nats high from its lowest point on. `points` are those of a row in a line."""
    directions = _by_direction(lines)
    figure, axes = panels(len(directions), 1, 2.4)
    for axis, (direction, own) in zip(axes, directions.items(), strict=True):
        found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        for line in own:
            for row in line["results"]:
                for name, at, ce in points(row, line):
                    found[name][at].append(ce)
        for name, (label, role, variant) in looks.items():
            curve(axis, sorted(found[name].items()), marks(role, variant), label)
        lowest = min(min(values) for of in found.values() for values in of.values())
        logarithmic(axis, "x", sorted({at for of in found.values() for at in of}))
        axis.set(
            title=direction,
            xlabel=across,
            ylabel="cross-entropy, nats per token",
            ylim=(lowest - 0.05, lowest + height),
        )
    return figure, axes
