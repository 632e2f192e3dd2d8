"""The page of a conversion: rows with intervals, and divergence from the donor against bytes."""

from dataclasses import dataclass

from stitch.pages.chart import FLUID, Chart, axis, colour, roles_in, shape, tips
from stitch.pages.intervals import intervals
from stitch.pages.page import Page
from stitch.pages.section import Section, Table, ungrouped
from stitch.report.palette import role_of

BYTES = {"cache_bytes": "bytes of cache per token", "state_bytes": "bytes of state", "table_bytes": "bytes of tables"}
NAMES = {"a": "donor", "composite": "converted", "bound": "floor"}
KL = "KL to the donor, nats per token"


@dataclass(frozen=True)
class Measure:
    """What rows are compared by: the key of its value in the report, what it is called, and its unit."""

    key: str
    name: str
    unit: str


NATS = Measure("ce", "Cross-entropy", "nats per token")
BITS = Measure("bpb", "Bits per byte", "bits per byte")


def conversion_page(report: dict, table: Table, notes: list[str], measure: Measure = NATS) -> Page:
    """The page of a conversion, with the table and sentences that the terminal shows."""
    rows = [
        {
            "label": row["name"],
            "role": _role(row["name"]),
            **_interval(row, measure),
        }
        for row in sorted(report["results"], key=lambda row: row[measure.key])
    ]
    title = f"{measure.name} of every row, with 95 % intervals"
    charts = [intervals("rows", title, rows, measure.unit, names=NAMES)]
    if (chart := bytes_against_kl(report)) is not None:
        charts.append(chart)
    sections = [
        Section(name="rows", heading="All rows", charts=charts, tables=[ungrouped(table)], notes=notes),
        *([_differences(report, measure)] if report["differences"] else []),
    ]
    return Page(title=report["title"], lead=report["made"], facts=[table[2]], sections=sections)


def _interval(row: dict, measure: Measure) -> dict:
    return {"value": row[measure.key], "low": row[f"{measure.key}_low"], "high": row[f"{measure.key}_high"]}


def _role(row: str) -> str:
    return role_of(row.removesuffix(" + refit"))


def bytes_against_kl(report: dict) -> Chart | None:
    """Divergence from the donor against bytes; None where all rows have the same bytes, or none."""
    key = next((key for key in BYTES if any(row.get(key) for row in report["results"])), "")
    points = [
        {"label": row["name"], "role": _role(row["name"]), "value": row["kl_to_b"], "bytes": row[key]}
        for row in report["results"]
        if row.get(key) and row["kl_to_b"] is not None
    ]
    if len({point["bytes"] for point in points}) < 2:
        return None
    roles = roles_in(points)
    spec = {
        "data": {"values": points},
        **FLUID,
        "height": 280,
        "mark": {"type": "point", "filled": True, "size": 90, "opacity": 0.9},
        "encoding": {
            "x": axis("bytes", BYTES[key], scale={"type": "log", "nice": False, "padding": 20}, axis={"format": "~s"}),
            "y": axis("value", KL, scale={"type": "sqrt", "zero": True}),  # so that small ones can be told apart
            **colour(roles),
            **shape(roles),
            "tooltip": tips(("label", "row", ""), ("value", KL, ".4f"), ("bytes", BYTES[key], ",")),
        },
    }
    title = f"Divergence against {BYTES[key]}"
    return Chart(name="bytes", title=title, spec=spec, roles=roles, names=NAMES, note="Left and low is better.")


def _differences(report: dict, measure: Measure) -> Section:
    rows = [
        {
            "label": f"{one['name']} − {one['minus']}",
            "role": _role(one["minus"]),
            **_interval(one, measure),
        }
        for one in report["differences"]
    ]
    note = "Both rows of a difference read the same documents. The colour is that of the second row."
    chart = intervals(
        "differences",
        "Paired differences",
        rows,
        f"difference in {measure.unit}",
        difference=True,
        names=NAMES,
        note=note,
    )
    header = ["row", "minus", measure.unit, "95 % interval, paired"]
    cells = [
        [one["name"], one["minus"], f"{row['value']:+.4f}", f"{row['low']:+.4f} to {row['high']:+.4f}"]
        for one, row in zip(report["differences"], rows, strict=True)
    ]
    return Section(
        name="compared", heading="What was compared with what", charts=[chart],
        tables=[ungrouped((header, cells, "Paired differences"))], folded=True,
    )  # fmt: skip
