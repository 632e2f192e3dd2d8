"""Tables and notes for a behaviour's scores and for a circuit, and the JSON text of a circuit."""

import json
import re

COLUMNS = ["", "right", "95 % interval", "probability", "nats"]


def table(report: dict) -> tuple[list[str], list[list[str]], str]:
    """Header, rows and title of the table of scores."""
    rows = [cells(row) for row in report["results"]]
    if "chance" in report:
        rows.append(["chance", f"{report['chance']:.1%}", "", f"{report['chance']:.3f}", ""])
    if report.get("order_one") is not None:
        rows.append(["order 1", f"{report['order_one']:.1%}", "", "", ""])
    title = f"{report['model']}: {report['behaviour']}, {report['prompts']:,} prompts, {report['places']:,} tokens asked for"
    return COLUMNS, rows, title


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
    return lines


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
