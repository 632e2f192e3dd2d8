"""What a result shows: a sentence, heat maps, tables and notes; as text for a terminal and as HTML for a notebook."""

import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from sae.messages import printable
from stitch.report.palette import HEAT, ink_on_heat

Table = tuple[list[str], list[list[str]], str]  # header, rows, title
Heat = tuple[str, list[str], list[list[str]], list[list[float]]]  # title, header, rows, values

WIDTH = 120  # columns where the output is no terminal
# Of the background, and of the text on it.
SHADES = [(shade, ink_on_heat(place / (len(HEAT) - 1))) for place, shade in enumerate(HEAT)]
HIGHLIGHTED = ("composite", "converted")  # rows that the command made


@dataclass(frozen=True, kw_only=True)
class Page:
    """The sentence that matters most, heat maps, tables, a line per note, and where the result lies."""

    lead: str | None = None
    heats: Sequence[Heat] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()
    written: Sequence[str] = ()

    def print(self) -> None:
        """Prints the page on standard output, as wide as the terminal or WIDTH columns elsewhere."""
        self._write(sys.stdout)

    def text(self) -> str:
        """The same as plain text, without colours."""
        found = io.StringIO()
        self._write(found)
        return found.getvalue().rstrip("\n")

    def _write(self, file: Any) -> None:
        if self.lead:
            print(printable(self.lead), end="\n\n", file=file)
        for heat in self.heats:
            _write_heat(*heat, file)
            print(file=file)
        for number, table in enumerate(self.tables):
            if number:
                print(file=file)
            _write_table(*table, file)
        if self.notes:
            print("", *map(printable, self.notes), sep="\n", file=file)
        if self.written:
            print(printable(f"\nwritten to {' and '.join(self.written)}"), file=file)

    def html(self) -> str:
        """The same as HTML, for a notebook."""
        parts = [f"<p><strong>{escape(self.lead)}</strong></p>"] if self.lead else []
        parts += [_heat_html(*heat) for heat in self.heats]
        parts += [_table_html(*table) for table in self.tables]
        if self.notes:
            parts.append("<ul>" + "".join(f"<li>{escape(note)}</li>" for note in self.notes) + "</ul>")
        if self.written:
            parts.append(f"<p>written to {escape(' and '.join(self.written))}</p>")
        return "\n".join(parts)


def _write_table(header: list[str], rows: list[list[str]], title: str, file: Any) -> None:
    from rich.table import Table

    table = Table(header_style="bold", show_header=any(header), box=None, pad_edge=False)
    for index, name in enumerate(header):
        table.add_column(printable(name), justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(printable, row), style="bold" if row[0].startswith(HIGHLIGHTED) else None)
    console = _console(file, WIDTH)
    console.print(printable(title), style="bold", soft_wrap=True)
    console.print(table)


def _write_heat(title: str, header: list[str], rows: list[list[str]], values: list[list[float]], file: Any) -> None:
    """A table of numbers on a background from light (lowest) to dark (highest); NaN has none."""
    from rich.table import Table
    from rich.text import Text

    table = Table(header_style="bold", box=None, pad_edge=False)
    for name in header:
        table.add_column(printable(name), justify="right", no_wrap=True)
    for row, shades in zip(rows, _shades(values), strict=True):
        styles = ["" if shade is None else f"{shade[1]} on {shade[0]}" for shade in shades]
        table.add_row(printable(row[0]), *(Text(*cell) for cell in zip(row[1:], styles, strict=True)))
    console = _console(file, max(WIDTH, 8 * len(header)))
    console.print(printable(title), style="bold", soft_wrap=True)
    console.print(table)


def _console(file: Any, width: int) -> Any:
    """Without emoji and markup, or `demo:llama:` and `[red]` would be read as such.

    In a notebook too it writes to `file` alone, and without colours.
    """
    from rich.console import Console

    terminal = file.isatty()
    return Console(
        file=file, width=None if terminal else width, highlight=False, emoji=False, markup=False, force_jupyter=False,
        force_terminal=terminal,
    )  # fmt: skip


def _shades(values: list[list[float]]) -> list[list[tuple[str, str] | None]]:
    """Background and foreground of each value; None for NaN."""
    there = [value for line in values for value in line if value == value]
    least, most = min(there), max(there)

    def shade(value: float) -> tuple[str, str] | None:
        if value != value:
            return None
        return SHADES[round((value - least) / max(most - least, 1e-12) * (len(SHADES) - 1))]

    return [[shade(value) for value in line] for line in values]


def _table_html(header: list[str], rows: list[list[str]], title: str) -> str:
    styles: list[list[str]] = []
    for row in rows:
        weight = "; font-weight: bold" if row[0].startswith(HIGHLIGHTED) else ""
        styles.append([f"text-align: {'right' if index else 'left'}{weight}" for index in range(len(row))])
    return _grid(header, rows, title, styles)


def _heat_html(title: str, header: list[str], rows: list[list[str]], values: list[list[float]]) -> str:
    styles = []
    for shades in _shades(values):
        cells = ["" if shade is None else f"background: {shade[0]}; color: {shade[1]}" for shade in shades]
        styles.append(["", *cells])
    return _grid(header, rows, title, styles)


def _grid(header: list[str], rows: list[list[str]], title: str, styles: list[list[str]]) -> str:
    heads = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join(
        "<tr>"
        + "".join(f'<td style="{style}">{escape(cell)}</td>' for cell, style in zip(row, look, strict=True))
        + "</tr>"
        for row, look in zip(rows, styles, strict=True)
    )
    return f"<table><caption>{escape(title)}</caption><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
