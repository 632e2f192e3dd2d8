"""The rows of a join's report: their chart with intervals, their table in groups, and the paired differences."""

from stitch.pages.chart import Chart
from stitch.pages.intervals import intervals
from stitch.pages.section import Group, Grouped, Section, ungrouped
from stitch.report.card import footnotes, table
from stitch.report.palette import role_of
from stitch.translation.rows import ROWS

ALTERNATIVES = frozenset(row.name for row in ROWS if row.alternative)
HELP = {row.name: row.help for row in ROWS}
# By the name of a group: what it is called, and whether the chart shows it at first.
GROUPS = {
    "model": ("models", True),
    "translation": ("translations", True),
    "reference": ("references", True),
    "bound": ("floors and ceilings", False),
    "null": ("nulls", False),
}
FAR = (
    1.5  # nats above the worst of both models and the composite; rows further up are a group of their own in the chart
)
CE = "cross-entropy, nats per token"


def role(row: str) -> str:
    return role_of(row, ALTERNATIVES)


def group_of(row: str) -> str:
    """The group of a report's row."""
    kind = row.partition(":")[0]
    if kind in ("floor", "ceiling"):
        return "bound"
    return kind if ":" in row and kind in GROUPS else "model"


def rows_chart(report: dict, name: str = "rows") -> Chart:
    """Every row's cross-entropy with its interval, best first. Rows that are far worse are switched off at first."""
    ceiling = FAR + max(row["ce"] for row in report["results"] if row["name"] in ("a", "b", "composite"))
    rows = [
        {
            "label": row["name"],
            "role": role(row["name"]),
            "group": group_of(row["name"]) if row["ce"] <= ceiling else "far",
            "value": row["ce"],
            "low": row["ce_low"],
            "high": row["ce_high"],
        }
        for row in sorted(report["results"], key=lambda row: row["ce"])
    ]
    there = {row["group"] for row in rows}
    groups = {
        group: found
        for group, found in {**GROUPS, "far": (f"more than {FAR} nats worse", False)}.items()
        if group in there
    }
    names = {side: f"{side.upper()}: {report['models'][side]}" for side in "ab"}
    return intervals(name, "Cross-entropy with 95 % intervals", rows, CE, groups=groups, names=names)


def rows_table(report: dict) -> Grouped:
    """The table that the terminal shows, in the groups of the chart. All are open: a table has its nulls."""
    header, cells, title = table(report)
    names = [row["name"] for row in report["results"]]
    before = len(cells) - len(names)  # a chain's rows
    groups: dict[str, list] = {"chain": [("", row) for row in cells[:before]], **{group: [] for group in GROUPS}}
    for row, shown in zip(names, cells[before:], strict=True):
        groups[group_of(row)].append((role(row), shown))
    headings = {"chain": "whole models and earlier composites", **{group: name for group, (name, _) in GROUPS.items()}}
    return Grouped(
        header=header,
        groups=[
            Group(name="" if group == "chain" else group, heading=headings[group], rows=rows)
            for group, rows in groups.items()
            if rows
        ],
        title=title,
    )


def rows_section(report: dict) -> Section:
    """All rows of the report. Below them are the sentences of the report that are not paired differences."""
    notes = [line for line in footnotes(report) if not line.endswith("paired).")]
    words = [
        "Lower is better. Two rows are compared by their paired difference, below, and not by their intervals here."
    ]
    return Section(
        name="rows",
        heading="All rows",
        words=words,
        charts=[rows_chart(report)],
        tables=[rows_table(report)],
        notes=notes,
    )


def differences_section(report: dict) -> Section:
    """What was compared with what: the composite with each alternative and yardstick, other rows with their nulls."""
    both = {True: [], False: []}
    for found in report["differences"]:
        of_composite = found["name"] == "composite"
        both[of_composite].append(
            {
                "label": found["minus"] if of_composite else f"{found['name']} − {found['minus']}",
                "role": role(found["minus"]),
                "value": found["ce"],
                "low": found["ce_low"],
                "high": found["ce_high"],
            }
        )
    what = "difference in nats per token"
    titles = {
        True: (
            "differences",
            "The composite minus other rows",
            "Left of zero the composite is better. The colour is that of the other row.",
        ),
        False: ("ablations", "Other rows minus what they are compared with", "The colour is that of the second row."),
    }
    charts = [
        intervals(name, title, sorted(both[key], key=lambda row: row["value"]), what, difference=True, note=note)
        for key, (name, title, note) in titles.items()
        if both[key]
    ]
    rows = [
        [found["name"], found["minus"], f"{found['ce']:+.3f}", f"{found['ce_low']:+.3f} to {found['ce_high']:+.3f}"]
        for found in report["differences"]
    ]
    header = ["row", "minus", "nats per token", "95 % interval, paired"]
    words = [
        "Both rows of a difference read the same documents, so what documents have in common cancels. A difference counts when "
        "its interval is clear of zero."
    ]
    return Section(
        name="compared",
        heading="What was compared with what",
        words=words,
        charts=charts,
        tables=[ungrouped((header, rows, "Paired differences"))],
        folded=True,
    )
