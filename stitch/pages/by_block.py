"""Matched features by block: how far the best pairs agree when both SAEs are read at other blocks of their models."""

from stitch.pages.heatmap import heatmap
from stitch.pages.section import Section, Table, ungrouped

WHAT = "mean correlation"
TITLES = {"correlation": "Matched pairs", "null": "Control: partners exchanged among the pairs"}


def by_block_section(found: dict, models: dict[str, str], site: dict[str, int]) -> Section:
    """`found` is `matching_by_block` of report.json, `site` the sites that the SAEs were trained at."""
    values = [value for name in TITLES for row in found[name] for value in row]
    ends = (min(values), max(values))  # one scale for both maps
    across, down = f"block of B, {models['b']}", "block of A"
    charts = [
        heatmap(f"by-block-{name}", title, _cells(found, name, site), across, down, WHAT, ends)
        for name, title in TITLES.items()
    ]
    words = [
        f"The {found['pairs']:,} best pairs on {found['tokens']:,} tokens of the sweep split, which nothing was matched on. A "
        "square reads A's features in one block's stream and B's in another's, and has the mean correlation of their codes. The "
        "frame marks the blocks that the SAEs were trained at. Elsewhere a stream is brought to the length that it has there; a "
        "feature that never fires counts as 0. A stream is the one entering the block, and the last that behind all blocks.",
        "Dark squares off the frame are blocks where the same features are in use. Darker ones than the frame's may be better "
        "blocks to join at.",
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
    header = ["A's block, by B's", *map(str, found["sites"]["b"])]
    rows = [
        [str(i), *(f"{value:.3f}" for value in row)] for i, row in zip(found["sites"]["a"], found[name], strict=True)
    ]
    return header, rows, f"{title}: {WHAT}"
