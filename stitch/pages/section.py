"""A part of a page: what it says, its charts and its tables."""

from dataclasses import dataclass, field

from stitch.pages.chart import Chart

Table = tuple[list[str], list[list[str]], str]  # header, rows, title


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows of a table that belong together: their name, a headline, and each with its role (or none)."""

    name: str
    heading: str
    rows: list[tuple[str, list[str]]]


@dataclass(frozen=True, kw_only=True)
class Grouped:
    """A table in groups."""

    header: list[str]
    groups: list[Group]
    title: str


def ungrouped(table: Table) -> Grouped:
    """A plain table, as one group without a headline."""
    header, rows, title = table
    return Grouped(header=header, groups=[Group(name="", heading="", rows=[("", row) for row in rows])], title=title)


@dataclass(frozen=True, kw_only=True)
class Section:
    """`name` is the anchor, unique on its page. `template` names a file that draws something more from `data`."""

    name: str
    heading: str
    words: list[str] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    tables: list[Grouped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    folded: bool = False  # whether the tables are closed at first
    template: str | None = None
    data: dict = field(default_factory=dict)
