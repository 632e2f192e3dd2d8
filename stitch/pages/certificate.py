"""The page of a compiled checkpoint: its trials, and how far the right answer was ahead in each."""

from stitch.pages.chart import Chart
from stitch.pages.intervals import intervals
from stitch.pages.page import Page
from stitch.pages.section import Section, Table, ungrouped

NAMES = {"composite": "no wrong answer", "null": "some wrong answers"}


def certificate_page(report: dict, title: str, tables: list[Table], notes: list[str]) -> Page:
    """The page beside a certificate, with the tables and sentences that the terminal shows."""
    charts = [_margins(report)] if report["results"] else []
    trials = Section(
        name="trials", heading="Trials against a reference interpreter", charts=charts, tables=[ungrouped(one) for one in tables]
    )  # fmt: skip
    return Page(title=title, lead=notes[-1], facts=notes[:-1], sections=[trials])


def _margins(report: dict) -> Chart:
    """The smallest margin of every trial in every precision and attention."""
    rows = [
        {
            "label": f"{row['trial']} ({row['dtype']}, {row['attention']})",
            "role": "null" if row["wrong"] else "composite",
            "value": row["margin"],
            "low": None,
            "high": None,
        }
        for row in report["results"]
    ]
    note = "The answer's logit minus the highest other one. Below zero the answer is wrong."
    title = "Smallest margin of the right answer"
    return intervals("margins", title, rows, "logits", difference=True, names=NAMES, note=note)
