"""The README of a depth sweep's folder."""

from stitch.files.markdown import inert, markdown_table
from stitch.files.recipe import card_section
from stitch.report.depth import best_table, footnotes
from stitch.report.no_picture import no_picture


def depth_card(report: dict) -> bytes:
    """README.md of a depth sweep's folder: the picture and the best range of each length."""
    header, rows, title = best_table(report)
    lines = [
        f"# {inert(report['models']['a'])}: which blocks can go, which can run twice",
        "",
        "`report.json` has every range of blocks that was tried, and the best of each length with intervals and nulls.",
        "",
        *(no_picture() or ["![Cross-entropy by first block and number of blocks](depth.png)"]),
        "",
        f"## {inert(title)}",
        "",
        *markdown_table(header, rows),
        "",
        *(f"- {inert(note)}" for note in footnotes(report)),
        "",
        *card_section(report["recipe"]),
    ]
    return "\n".join(lines).encode()
