"""Matched features by block: how far the best pairs agree when both SAEs are read at other blocks of their models."""

from stitch.pages.heatmap import heatmap
from stitch.pages.section import Section, Table, ungrouped
from stitch.report.palette import ends_of

WHAT = "mean correlation"
TITLES = {"correlation": "Matched pairs", "null": "Control: partners exchanged among the pairs"}


def by_block_section(found: dict, models: dict[str, str], site: dict[str, int]) -> Section:
    """`found` is `matching_by_block` of report.json, `site` the sites that the SAEs were trained at."""
    ends = ends_of(
        (value for name in TITLES for row in found[name] for value in row), to=1.0
    )  # one scale for both maps
    across, down = f"block of B, {models['b']}", "block of A"
    charts = [
        heatmap(f"by-block-{name}", title, _cells(found, name, site), across, down, WHAT, ends, sign="")
        for name, title in TITLES.items()
    ]
    words = [
        "Each square is the mean correlation of the codes when A's features are read at one block and B's at another: of the "
        f"{found['pairs']:,} best pairs, on {found['tokens']:,} tokens of the sweep split, which nothing was matched on. The "
        "frame marks the blocks that the SAEs were trained at. The pairs were chosen there, which favours it. Elsewhere a stream "
        "is brought to the length that it has there; a feature that never fires counts as 0. A stream is the one entering the "
        "block, and the last that behind all blocks.",
        "Darker is higher: colours go from the lowest number of both maps to the highest, so a dark square need not be high.",
    ]
    return Section(
        name="blocks",
        heading="Matched features by block",
        words=words,
        charts=charts,
        tables=[ungrouped(_table(found, name, title)) for name, title in TITLES.items()],
        folded=True,
    )


def _cells(found: dict, name: str, site: dict[str, int]) -> list[dict]:
    return [
        {"x": j, "y": i, "value": value, "best": i == site["a"] and j == site["b"]}
        for i, row in zip(found["sites"]["a"], found[name], strict=True)
        for j, value in zip(found["sites"]["b"], row, strict=True)
    ]


def _table(found: dict, name: str, title: str) -> Table:
    header = ["block of A \\ block of B", *map(str, found["sites"]["b"])]
    rows = [
        [str(i), *(f"{value:.3f}" for value in row)] for i, row in zip(found["sites"]["a"], found[name], strict=True)
    ]
    return header, rows, f"{title}: {WHAT}"
