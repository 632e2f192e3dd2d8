"""Prints every row of `translations.py` as Markdown: `python benchmarks/_table.py LINES.jsonl`.

One line per row of the report, one column per direction and amount of text. Entries are means over the seeds, with
their range where it is visible.
"""

import sys
from collections import defaultdict

from _lines import read
from tables import markdown


def main() -> None:
    results = read(sys.argv[1])
    found: dict[str, dict[tuple[str, int], list[float]]] = defaultdict(lambda: defaultdict(list))
    columns = set()
    for result in results:
        column = " → ".join(name.removeprefix("demo:") for name in result["models"].values()), result["tokens"]["fit"]
        columns.add(column)
        for row in result["results"]:
            found[row["name"]][column].append(row["ce"])
        for row in result["differences"]:
            found[f"{row['name']} − {row['minus']}"][column].append(row["ce"])
    ordered = sorted(columns)
    header = ["", *(f"{direction}, {tokens:,}" for direction, tokens in ordered)]
    rows = [[f"`{name}`", *(_cell(values[column]) for column in ordered)] for name, values in found.items()]
    print(markdown(header, rows), end="")


def _cell(values: list[float]) -> str:
    if not values:
        return ""
    mean = f"{sum(values) / len(values):.3f}"
    return mean if max(values) - min(values) < 0.0005 else f"{mean} ({min(values):.3f} – {max(values):.3f})"


if __name__ == "__main__":
    main()
