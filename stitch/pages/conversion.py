"""The page of a conversion: rows with intervals, and divergence from the donor against bytes."""

from stitch.pages.chart import FLUID, Chart, axis, colour, roles_in, shape, tips
from stitch.pages.intervals import intervals
from stitch.pages.page import Page, html
from stitch.pages.section import Section, Table, ungrouped
from stitch.report.palette import role_of

BYTES = {"cache_bytes": "bytes of cache per token", "state_bytes": "bytes of state", "table_bytes": "bytes of tables"}
NAMES = {"a": "donor", "composite": "converted", "bound": "floor"}
KL = "KL to the donor, nats per token"


def conversion_page(report: dict, table: Table, notes: list[str]) -> bytes:
    """report.html of a conversion, with the table and sentences that the terminal shows."""
    rows = [
        {
            "label": row["name"],
            "role": _role(row["name"]),
            "value": row["ce"],
            "low": row["ce_low"],
            "high": row["ce_high"],
        }
        for row in sorted(report["results"], key=lambda row: row["ce"])
    ]
    charts = [intervals("rows", "Cross-entropy of every row, with 95 % intervals", rows, "nats per token", names=NAMES)]
    if (chart := bytes_against_kl(report)) is not None:
        charts.append(chart)
    sections = [
        Section(name="rows", heading="All rows", charts=charts, tables=[ungrouped(table)], notes=notes),
        *([_differences(report)] if report["differences"] else []),
    ]
    return html(Page(title=report["title"], lead=report["made"], facts=[table[2]], sections=sections))


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


def _differences(report: dict) -> Section:
    rows = [
        {
            "label": f"{one['name']} − {one['minus']}",
            "role": _role(one["minus"]),
            "value": one["ce"],
            "low": one["ce_low"],
            "high": one["ce_high"],
        }
        for one in report["differences"]
    ]
    note = "Both rows of a difference read the same documents. The colour is that of the second row."
    chart = intervals(
        "differences",
        "Paired differences",
        rows,
        "difference in nats per token",
        difference=True,
        names=NAMES,
        note=note,
    )
    header = ["row", "minus", "nats per token", "95 % interval, paired"]
    cells = [
        [one["name"], one["minus"], f"{one['ce']:+.4f}", f"{one['ce_low']:+.4f} to {one['ce_high']:+.4f}"]
        for one in report["differences"]
    ]
    return Section(
        name="compared", heading="What was compared with what", charts=[chart],
        tables=[ungrouped((header, cells, "Paired differences"))], folded=True,
    )  # fmt: skip
