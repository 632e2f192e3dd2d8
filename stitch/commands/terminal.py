"""What commands print: tables, heat maps and notes for people, or one JSON report."""

import json
import sys
from collections.abc import Iterable
from typing import Any

Table = tuple[list[str], list[list[str]], str]  # header, rows, title
Heat = tuple[str, list[str], list[list[str]], list[list[float]]]  # title, header, rows, values

WIDTH = 120  # columns where the output is no terminal
# Five steps of cividis, which rise evenly to the eye, and a colour that can be read on each.
SHADES = ["black on #fee838", "black on #bcae6c", "white on #7d7c78", "white on #414d6b", "white on #00224e"]
HIGHLIGHTED = ("composite", "converted")  # rows that the command made


def print_json(report: Any) -> None:
    print(json.dumps(report, indent=2))


def print_page(
    tables: Iterable[Table], notes: Iterable[str] = (), written: Iterable[Any] = (), lead: str | None = None
) -> None:
    """The sentence that matters most, tables, a line per note, and where the result lies; apart by blank lines."""
    if lead:
        print(lead, end="\n\n")
    for number, table in enumerate(tables):
        if number:
            print()
        print_table(*table)
    if notes := list(notes):
        print("", *notes, sep="\n")
    if written := [str(place) for place in written if place]:
        print(f"\nwritten to {' and '.join(written)}")


def print_table(header: list[str], rows: list[list[str]], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(header_style="bold", show_header=any(header), box=None, pad_edge=False)
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row, style="bold" if row[0].startswith(HIGHLIGHTED) else None)
    # Without emoji, or `demo:llama:` would become one.
    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False, emoji=False)
    console.print(title, style="bold", soft_wrap=True)
    console.print(table)


def print_heat(title: str, header: list[str], rows: list[list[str]], values: list[list[float]]) -> None:
    """A table of numbers on a background from light (lowest) to dark (highest); NaN has none."""
    from rich.console import Console
    from rich.table import Table

    there = [value for line in values for value in line if value == value]
    least, most = min(there), max(there)
    table = Table(header_style="bold", box=None, pad_edge=False)
    for name in header:
        table.add_column(name, justify="right", no_wrap=True)
    for row, line in zip(rows, values, strict=True):
        table.add_row(row[0], *(_shaded(*cell, least, most) for cell in zip(row[1:], line, strict=True)))
    console = Console(width=None if sys.stdout.isatty() else max(WIDTH, 8 * len(header)), highlight=False, emoji=False)
    console.print(title, style="bold", soft_wrap=True)
    console.print(table)


def _shaded(text: str, value: float, least: float, most: float) -> Any:
    from rich.text import Text

    if value != value:
        return Text(text)
    return Text(text, SHADES[round((value - least) / max(most - least, 1e-12) * (len(SHADES) - 1))])
