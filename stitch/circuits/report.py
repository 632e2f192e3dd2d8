"""Tables and notes for a behaviour's scores and for a circuit, and the JSON text of a circuit."""

import json
import re
from collections.abc import Sequence

COLUMNS = ["", "right", "95 % interval", "probability", "nats"]
SHOWN = ("clean", "model", "circuit alone", "without it", "corrupt", "corrupt prompts")  # rows with scores by distance

Table = tuple[list[str], list[list[str]], str]


def table(report: dict) -> Table:
    """Header, rows and title of the table of scores."""
    rows = [cells(row) for row in report["results"]]
    if "chance" in report:
        rows.append(["chance", f"{report['chance']:.1%}", "", f"{report['chance']:.3f}", ""])
    if report.get("order_one") is not None:
        rows.append(["order 1", f"{report['order_one']:.1%}", "", "", ""])
    title = f"{report['model']}: {report['behaviour']}, {report['prompts']:,} prompts, {report['places']:,} tokens asked for"
    return COLUMNS, rows, title


def tables(report: dict) -> list[Table]:
    """The table of scores, and one by distance where the prompts have distances."""
    title = f"{report['model']}: {report['behaviour']}"
    return [table(report), *distance_tables(report["results"], SHOWN, title)]


def distance_tables(rows: Sequence[dict], names: Sequence[str], title: str) -> list[Table]:
    """A table of the share of right answers by distance, with intervals and the number of prompts, of the rows with these names.

    None where the prompts have no distances.
    """
    columns = {row["name"]: row["distances"] for row in rows if row["name"] in names and "distances" in row}
    if not columns:
        return []
    found = [
        [
            f"{same[0]['least']} – {same[0]['most'] - 1}",
            f"{same[0]['prompts']:,}",
            *(f"{one['right']:.1%} ({one['right_low']:.0%} – {one['right_high']:.0%})" for one in same),
        ]
        for same in zip(*columns.values(), strict=True)
    ]
    return [(["tokens back", "prompts", *columns], found, f"{title}, right answers by distance")]


def beyond(rows: Sequence[dict], names: Sequence[str]) -> list[str]:
    """A line with what the rows of these names answer right beyond what they do on corrupt prompts."""
    found = {
        row["name"]: f"{row['beyond']:.1%} ({row['beyond_low']:.1%} – {row['beyond_high']:.1%})"
        for row in rows
        if row["name"] in names and "beyond" in row
    }
    shares = found.values() if len(found) == 1 else [f"{name} {share}" for name, share in found.items()]
    return [f"Right beyond corrupt prompts: {', '.join(shares)}."] if found else []


def footnotes(report: dict) -> list[str]:
    """Lines under a circuit's table: its heads, its number of neurons, and its overlap with the circuit of other prompts."""
    size = report["size"]
    heads = [f"{block}.{number}" for block, numbers in report["circuit"]["heads"].items() for number in numbers]
    lines = [
        f"Circuit: {size['heads']['kept']} of {size['heads']['of']} heads"
        + (f" ({', '.join(heads)})" if heads else "")
        + ", "
        f"{size['neurons']['kept']:,} of {size['neurons']['of']:,} {inner_name(report)}."
    ]
    if report["stability"] is not None:
        lines.append(f"Attribution on other prompts chooses {report['stability']:.0%} of the same components.")
    return [*lines, *beyond(report["results"], SHOWN)]


def inner_name(report: dict) -> str:
    """The name of the components inside MLPs: neurons, with the blocks named in which features replace them."""
    blocks = ", ".join(report["features"])
    return f"neurons (of blocks {blocks}, features)" if blocks else "neurons"


def to_json(report: dict) -> str:
    """The report as JSON with every list of numbers on one line, for editing by hand."""
    text = json.dumps(report, indent=2)
    return (
        re.sub(
            r"\[[-+.\de,\s]+\]", lambda found: re.sub(r"\s+", " ", found[0]).replace("[ ", "[").replace(" ]", "]"), text
        )
        + "\n"
    )


def cells(row: dict) -> list[str]:
    """The cells of a row: name, share of right answers with its interval, probability and nats."""
    return [
        row["name"],
        f"{row['right']:.1%}",
        f"{row['right_low']:.1%} – {row['right_high']:.1%}",
        f"{row['probability']:.3f}",
        f"{row['nats']:.3f}",
    ]
