"""The README of a sweep's folder."""

from stitch.files.markdown import inert, markdown_table
from stitch.files.recipe import card_section
from stitch.report.no_picture import no_picture
from stitch.report.sweep import best_table, footnotes, framed, front_table

PICTURE = "![Cross-entropy above the best alternative for every pair of layers, and the Pareto fronts](sweep.png)"


def sweep_card(report: dict) -> bytes:
    """README.md of a sweep's folder: the picture, both fronts, and the chosen j of every i."""
    lines = [
        f"# {inert(report['models']['a'])} × {inert(report['models']['b'])}: every pair of layers",
        "",
        "Every composite runs blocks 0 to i − 1 of one model, a translation fitted in closed form, and the other model's "
        "blocks from j on. `report.json` has the translations, null, intervals, KL, cost and line of every pair (i, j).",
        "",
        *(no_picture() or [PICTURE]),
        "",
    ]
    for header, rows, title in (
        front_table(report, "flops"),
        front_table(report, "bytes"),
        best_table(report),
    ):
        lines += [f"## {title.partition(':')[0]}", ""]
        lines += [*markdown_table(header, rows), ""]
    lines += [
        framed(report),
        "",
        *(f"- {inert(note)}" for note in footnotes(report)),
        "",
    ]
    lines += card_section(report["recipe"])
    return "\n".join(lines).encode()
