"""The page of a join: verdict, rows, differences, frontier, where the loss lies, and matched features."""

from stitch.pages.by_block import by_block_section
from stitch.pages.curves import curves
from stitch.pages.features import features_section
from stitch.pages.frontier import frontier
from stitch.pages.page import Page
from stitch.pages.rows import ALTERNATIVES, differences_section, group_of, role, rows_section
from stitch.pages.section import Section, ungrouped
from stitch.report.card import table
from stitch.report.verdict import verdict_sentence

STATUS = {"dominated": "Dominated.", "level": "Level.", "frontier": "On the frontier."}
BINS = {
    "position": ("by how many tokens were read", "tokens read, with the start token"),
    "frequency": (
        "by how frequent the predicted token is",
        "times per million tokens of the fit split",
    ),
}


def join_page(report: dict, features: dict | None = None) -> Page:
    """The page of a join, of depth surgery, or of a model joined to itself. `features` is the content of features.json."""
    models = report["models"]
    return Page(
        title=f"{models['a']} × {models['b']}"
        if "native" not in report
        else f"{models['a']} {report['native']['change']}",
        lead=verdict_sentence(report) if "verdict" in report else "",
        facts=[table(report)[2]],
        sections=join_sections(report, features),
    )


def join_sections(report: dict, features: dict | None) -> list[Section]:
    """The sections that a report has numbers for."""
    sections = [rows_section(report), differences_section(report)]
    if any("bytes" in row for row in report["results"]):
        sections.append(frontier_section(report))
    if "breakdown" in report:
        sections.append(breakdown_section(report))
    if found := report.get("matching_by_block"):
        sections.append(by_block_section(found, report["models"], report["site"]))
    if features is not None and features.get("pairs"):
        sections.append(features_section(features, report["models"], report["tokens"]["fit"]))
    return sections


def frontier_section(report: dict) -> Section:
    """Cross-entropy against FLOPs and against bytes: models, alternatives, composite, translations."""
    rows = [
        {
            "label": row["name"],
            "short": row["name"].partition(":")[2] or row["name"],
            "role": role(row["name"]),
            "value": row["ce"],
            "flops": row["flops"],
            "bytes": row["bytes"],
        }
        for row in report["results"]
        if row.get("bytes") and (group_of(row["name"]) not in ("bound", "null") or row["name"] in ALTERNATIVES)
        if row["name"] != f"reference:{report['chosen']}"  # the composite itself
    ]
    composite = next((row for row in rows if row["label"] == "composite"), {})
    charts = [frontier(cost, rows, cost, limit=composite.get(cost)) for cost in ("flops", "bytes")]
    words = ["The grey steps are the best alternative at every budget. A composite above them is not worth its cost."]
    return Section(name="frontier", heading="What it costs", words=words, charts=charts)


def breakdown_section(report: dict) -> Section:
    """Where the composite loses: cross-entropy by position and by frequency."""
    charts, tables = [], []
    for kind, (title, across) in BINS.items():
        bins = report["breakdown"][kind]
        points = [
            {"label": name, "role": role(name), "at": one["bin"], **_as_point(row)}
            for one in bins
            for name, row in one["rows"].items()
        ]
        charts.append(curves(kind, f"Cross-entropy {title}", points, across, "nats per token"))
        apart = [
            {"label": name, "role": role(name), "at": one["bin"], **_as_point(row["minus_composite"])}
            for one in bins
            for name, row in one["rows"].items()
            if name != "composite"
        ]
        note = "Below zero the row is better than the composite."
        what = "nats per token"
        charts.append(
            curves(f"{kind}-apart", "The same minus the composite’s", apart, across, what, zero=True, note=note)
        )
        names = list(bins[0]["rows"]) if bins else []
        rows = [
            [one["bin"], f"{one['tokens']:,}", *(f"{one['rows'][name]['ce']:.3f}" for name in names)] for one in bins
        ]
        tables.append(ungrouped(([across, "tokens", *names], rows, f"Cross-entropy {title}")))
    words = ["Upright lines are 95 % intervals over documents; those of differences are paired."]
    return Section(name="where", heading="Where the loss lies", words=words, charts=charts, tables=tables, folded=True)


def _as_point(row: dict) -> dict:
    return {"value": row["ce"], "low": row["ce_low"], "high": row["ce_high"]}
