"""Rows of right answers, as circuits and grafts report them: a chart with intervals, and the table."""

from collections.abc import Sequence

from stitch.pages.chart import Chart
from stitch.pages.intervals import intervals

OURS = (
    "circuit alone",
    "circuit alone, other means",
    "its circuit alone",
    "host, grafted",
)  # by name: what the command made
WHOLE = ("model", "donor", "features for neurons", "rearranged donor")
NAMES = {"a": "model or donor", "composite": "circuit or graft", "null": "control"}


def answers(name: str, title: str, rows: Sequence[dict], whole: Sequence[str] = WHOLE) -> Chart:
    """The share of right answers of every row with its interval, in the order of the report."""
    points = [
        {
            "label": row["name"],
            "role": "a" if row["name"] in whole else "composite" if row["name"] in OURS else "null",
            "value": row["right"],
            "low": row["right_low"],
            "high": row["right_high"],
        }
        for row in rows
    ]
    return intervals(name, title, points, "share of right answers", domain=(0, 1), names=NAMES)
