"""The tables of rows in docs/reading-a-report.md, made from the registry that fits and scores them.

    python docs/rows.py      rewrites them in place

`<!-- rows: null -->` ... `<!-- end -->` holds the rows of one kind.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from stitch.translation.rows import FREE, LOOK_UPS, ROWS, nulls_of

PAGE = Path(__file__).resolve().parent / "reading-a-report.md"
BLOCK = re.compile(r"(<!-- rows: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
KINDS = list(dict.fromkeys(row.kind for row in ROWS))
# Long lists of inputs that many rows share, and what they are called for short.
TOGETHER = {"free": FREE, "look-ups": LOOK_UPS}


def rewritten(page: str) -> str:
    return BLOCK.sub(lambda found: f"{found[1]}\n{table(found[2])}\n{found[3]}", page)


def table(kind: str) -> str:
    rows = [row for row in ROWS if row.kind == kind]
    columns = {
        "Row": [f"`{row.name}`" for row in rows],
        "What it is": [row.help for row in rows],
        "Reads": [_names(_shortened(row.reads)) for row in rows],
        "Null": [_names(nulls_of(row.name)) for row in rows],
        "Compared with": [f"`{row.compared_with}`" if row.compared_with else "" for row in rows],
        "Cost": [row.cost for row in rows],
        "In `--brief`": ["yes" if row.brief else "" for row in rows],
    }
    # What is the same for all rows of a kind says nothing.
    told = {name: cells for name, cells in columns.items() if name in ("Row", "What it is") or len(set(cells)) > 1}
    lines = [list(told), ["-"] * len(told), *zip(*told.values(), strict=True)]
    return "".join("|" + "|".join(_cell(cell) for cell in line) + "|\n" for line in lines)


def _cell(text: str) -> str:
    return text if text == "-" else " " + text.replace("|", "\\|") + " "


def _shortened(reads: Sequence[str]) -> list[str]:
    names = list(reads)
    for short, several in TOGETHER.items():
        if set(several) <= set(names):
            names = [*(name for name in names if name not in several), short]
    return names


def _names(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text()))
