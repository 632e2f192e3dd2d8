"""The page of a depth sweep: loss by where blocks are removed or repeated and how many, and the best of each length."""

from stitch.pages.curves import curves
from stitch.pages.heatmap import heatmap
from stitch.pages.page import Page
from stitch.pages.section import Section, ungrouped
from stitch.report.depth import ROWS, best_in, best_table, blocks, footnotes, heat, kinds, rows
from stitch.report.palette import ends_of

ROLE = {"passthrough": "baseline", "down-projection": "composite"}
NATS = "nats above the whole model"


def depth_page(report: dict) -> Page:
    """The page of a depth sweep."""
    notes = footnotes(report)
    return Page(
        title=f"{report['models']['a']}: which blocks can go"
        + (", which can run twice" if len(kinds(report)) > 1 else ""),
        lead=notes[0],
        facts=notes[1:2],
        sections=[_maps(report), _best(report, notes[2:])],
    )


def _maps(report: dict) -> Section:
    charts, tables = [], []
    whole = report["whole"]["sweep_ce"]
    ends = ends_of(cell["sweep_ce"][row] - whole for cell in report["cells"] for row in rows(report))
    for kind in kinds(report):
        for row in rows(report):
            title, header, texts, values = heat(report, kind, row)
            firsts = [int(one) for one in header[1:]]
            best = {(one["length"], one["first"]) for one in best_in(report, kind, row)}
            cells = [
                {"x": first, "y": int(text[0]), "value": value, "best": (int(text[0]), first) in best}
                for text, line in zip(texts, values, strict=True)
                for first, value in zip(firsts, line, strict=True)
                if value == value
            ]
            name = f"Blocks {kind}, {ROWS[row].replace('`', '')}"
            charts.append(heatmap(f"{kind}-{row}", name, cells, f"first block {kind}", f"blocks {kind}", NATS, ends))
            tables.append(ungrouped((header, texts, title)))
    words = [
        "A square is the model with some blocks removed or run twice. The frame marks the best start of each length."
    ]
    return Section(
        name="ranges", heading="Every range of blocks", words=words, charts=charts, tables=tables, folded=True
    )


def _best(report: dict, notes: list[str]) -> Section:
    """The best range of each length on the report split, beside others of its length."""
    charts = []
    for kind in kinds(report):
        points = []
        for row in rows(report):
            for one in best_in(report, kind, row):
                found = next(item for item in one["rows"] if item["name"] == row)
                loss = found["minus_whole"]
                at = {"at": str(one["length"]), "blocks": blocks(one)}
                points.append(
                    {
                        **at,
                        "label": f"best, {row}",
                        "role": ROLE[row],
                        "value": loss["ce"],
                        "low": loss["ce_low"],
                        "high": loss["ce_high"],
                    }
                )
                if "null_ce" in found and row == rows(report)[-1]:
                    elsewhere = found["null_ce"] - report["whole"]["ce"]
                    points.append(
                        {
                            **at,
                            "label": f"elsewhere, {row}",
                            "role": "null",
                            "value": elsewhere,
                            "low": None,
                            "high": None,
                        }
                    )
        names = {
            "baseline": "nothing refitted",
            "composite": "bridged by down-projection",
            "null": "as many blocks elsewhere",
        }
        charts.append(
            curves(
                f"best-{kind}",
                f"Best range of each length, {kind}",
                points,
                f"blocks {kind}",
                NATS,
                zero=True,
                names=names,
            )
        )
    return Section(
        name="best",
        heading="The best of each length",
        charts=charts,
        tables=[ungrouped(best_table(report))],
        notes=notes,
    )
