"""The page of a transfer: what was carried over beside what was trained on B, the other maps and the nulls."""

from dataclasses import dataclass, replace

from stitch.pages.chart import Chart
from stitch.pages.intervals import intervals
from stitch.pages.page import Page
from stitch.pages.section import Section, Table, ungrouped
from stitch.report.across import IN_BITS

NAMES = {"a": "A's own", "b": "trained on B, or B itself", "composite": "carried over"}


@dataclass(frozen=True)
class Measure:
    """A key of the report's rows that a chart shows, with its ends where rows have an interval."""

    key: str
    title: str
    what: str


MEASURES = {
    "sae": (
        Measure("ce", "Cross-entropy of B with the reconstruction in place of its stream", "nats per token"),
        Measure("fvu", "Share of the stream's variance that is left unexplained (FVU)", "FVU"),
        Measure("agree", "Features that fire most on the same text as A's", "share of features"),
    ),
    "probe": (Measure("accuracy", "Balanced accuracy on texts that no probe was fitted on", "share"),),
    "vector": (
        Measure("effect", "What the vector does to the next token, beside what it does in A", "correlation"),
        Measure("side", "Cross-entropy above that of the unsteered model", "nats per token"),
    ),
}


def transfer_page(report: dict, table: Table, notes: list[str]) -> Page:
    """The page of a transfer, with the table and sentences that the terminal shows."""
    measures = [_in_bits(one) if "across" in report else one for one in MEASURES[report["kind"]]]
    charts = [found for measure in measures if (found := _chart(report, measure)) is not None]
    models, facts = report["models"], 2 if "across" in report else 1  # that models read different tokens is one
    rows = Section(name="rows", heading="All rows", charts=charts, tables=[ungrouped(table)], notes=notes[facts:])
    title = f"{report['kind']} of {models['a']} for {models['b']}".replace("sae", "SAE", 1)
    return Page(title=title, lead=table[2], facts=notes[:facts], sections=[rows])


def _in_bits(measure: Measure) -> Measure:
    """Models with different tokens are compared in bits per byte."""
    if measure.key not in IN_BITS:
        return measure
    return replace(measure, key=IN_BITS[measure.key], what="bits per byte")


def _chart(report: dict, measure: Measure) -> Chart | None:
    """The rows that have this measure, from the top as in the table; None where no row has it."""
    rows = [
        {
            "label": row["name"],
            "role": _role(row["name"], report["chosen"]),
            "value": row[measure.key],
            "low": row.get(f"{measure.key}_low"),
            "high": row.get(f"{measure.key}_high"),
        }
        for row in report["results"]
        if row.get(measure.key) is not None
    ]
    return intervals(measure.key, measure.title, rows, measure.what, names=NAMES) if rows else None


def _role(row: str, chosen: str) -> str:
    if row == chosen or row.startswith("transferred"):
        return "composite"
    if row == "a" or row.startswith("a "):  # with its SAE, or steered
        return "a"
    if row == "b" or row.startswith("reference:native"):
        return "b"
    return "null" if row.startswith("null:") else "baseline"
