"""The tables in docs/findings and docs/models.md that have a comment above them, made from the JSON lines in benchmarks/results.

    python benchmarks/tables.py            rewrites every table in place
    python benchmarks/tables.py --check    changes nothing and exits 1 if a page differs from its data

A page says in YAML, in a comment above the table, which numbers the table shows:

    <!-- table: readable.jsonl                       one file or several
    each: results                                    every entry of this list becomes a record, with the line's own fields
    where: {direction: gpt2-llama}                   keeps the records that have these values (a list: any of them)
    rows: {sae: SAE features, pca: principal components}
    columns:
      1 edge: {where: {name: "{row}, m=1"}, cell: "{ce:.3f}"}
      2 edges: {where: {name: "{row}, m=2"}, cell: "{ce:.3f}"}
    -->
    ...the table...
    <!-- end -->

A list of `rows` has the rows' own names as labels, and a row "x; y" has either name. Without `rows` every record is a
row and a column is the template of its cell alone. Then `together: x` makes one row of rows that are alike in all columns
but x, where it lists theirs; with `most: 9` it counts them where there are more. Entries of mappings and lists are named
with dots (`range.0`), and a paired difference has the field `pair` ("name − minus"). What a cell's template may say stands
in `_cells.py`.

`<!-- pages: main-job look-ups -->` ... `<!-- end -->` lists pages with their answers.
"""

import functools
import itertools
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml
from _cells import cell
from _lines import read

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "findings"
MODELS = ROOT / "docs" / "models.md"
RESULTS = ROOT / "benchmarks" / "results"
BLOCK = re.compile(r"(<!-- table: *([^\n]+)\n(.*?)-->\n).*?(<!-- end -->)", re.DOTALL)
INDEX = re.compile(r"(<!-- pages: *([^\n]+?) *-->\n).*?(<!-- end -->)", re.DOTALL)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, *rows]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    return "\n".join([lines[0], "|" + "-|" * len(header), *lines[1:]]) + "\n"


def rewritten(page: str) -> str:
    page = BLOCK.sub(lambda found: found[1] + "\n" + table(found[2], yaml.safe_load(found[3])) + "\n" + found[4], page)
    return INDEX.sub(lambda found: found[1] + "\n" + index(found[2].split()) + "\n" + found[3], page)


def index(pages: list[str]) -> str:
    """The question and answer of each page (its first two paragraphs), and the site's table of contents."""
    heads = {page: (PAGES / f"{page}.md").read_text().split("\n\n", 2) for page in pages}
    entries = [
        f"- **[{question.removeprefix('# ')}]({page}.md)** {answer}\n" for page, (question, answer, _) in heads.items()
    ]
    return "".join(entries) + "\n```{toctree}\n:hidden:\n\n" + "\n".join(pages) + "\n```\n"


def table(file: str, spec: dict) -> str:
    columns = [column if isinstance(column, dict) else {"cell": column} for column in spec["columns"].values()]
    columns = [{**spec, **column, "where": {**spec.get("where", {}), **column.get("where", {})}} for column in columns]
    header = list(spec["columns"])
    if "rows" not in spec:
        shown = [record for record in records(file, spec.get("each")) if fits(record, spec.get("where", {}))]
        rows = [[cell([record], column) for column in columns] for record in shown]
        if "together" in spec:
            rows = merged(rows, header.index(spec["together"]), spec.get("most"))
        return markdown(header, filled(file, header, rows))
    labels = spec["rows"]
    if isinstance(labels, list):
        labels = {row: "`" + row.replace(" − ", "` − `") + "`" for row in labels}
    rows = [[label, *(crossing(file, row, column) for column in columns)] for row, label in labels.items()]
    header = [spec.get("corner", ""), *header]
    return markdown(header, filled(file, header, rows))


def merged(rows: list[list[str]], place: int, most: int | None) -> list[list[str]]:
    """One row for all that are alike but at `place`, the most frequent first."""
    alike: dict[tuple, list[str]] = {}
    for row in rows:
        alike.setdefault((*row[:place], *row[place + 1 :]), []).append(row[place])
    found = []
    for others, own in sorted(alike.items(), key=lambda item: -len(item[1])):
        listed = ", ".join(own) if most is None or len(own) <= most else str(len(own))
        found.append([*others[:place], listed, *others[place:]])
    return found


def filled(file: str, header: list[str], rows: list[list[str]]) -> list[list[str]]:
    for name, *column in zip(header, *rows, strict=True):
        if not any(column):
            raise SystemExit(
                f"{file}: the column {name!r} is empty; its cell must name fields of the records it selects"
            )
    return rows


def crossing(file: str, row: object, column: dict) -> str:
    found = [record for record in records(file, column.get("each")) if fits(record, column["where"], row)]
    return cell(found, {**column, "cell": column["cell"].replace("{row}", str(row))})


def records(file: str, each: str | list[str] | None) -> list[dict]:
    """Records of one or several files: lines, or the entries of a list or mapping in them together with the fields
    around it.
    """
    steps = (each,) if isinstance(each, str) else tuple(each or ())
    return [record for name in file.split() for record in _read(RESULTS / name, steps)]


@functools.cache
def _read(path: Path, steps: tuple[str, ...]) -> list[dict]:
    found = read(path)
    for step in steps:
        found = list(itertools.chain.from_iterable(entries(record, step) for record in found))
    found = [flat(record) for record in found]
    return [{**r, "pair": f"{r['name']} − {r['minus']}"} if {"name", "minus"} <= r.keys() else r for r in found]


def entries(record: dict, step: str) -> Iterator[dict]:
    around, inside = {key: value for key, value in record.items() if key != step}, record.get(step, [])
    if isinstance(inside, dict):
        inside = [{step: key, **value} for key, value in inside.items() if isinstance(value, dict)]
    for entry in inside:
        yield {**around, **entry}


def flat(record: dict, prefix: str = "") -> dict:
    found = {}
    for key, value in record.items():
        if isinstance(value, list) and not any(isinstance(item, dict) for item in value):
            value = dict(enumerate(value))
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def fits(record: dict, where: dict, row: object = None) -> bool:
    for key, wanted in where.items():
        options = wanted if isinstance(wanted, list) else [wanted]
        named = [str(option).replace("{row}", name) for option in options for name in str(row).split("; ")]
        if str(record.get(key)) not in named:
            return False
    return True


def main() -> int:
    check, stale = "--check" in sys.argv[1:], []
    for path in [*sorted(PAGES.glob("*.md")), MODELS]:
        before = path.read_text()
        after = rewritten(before)
        if before != after:
            stale.append(path)
            if not check:
                path.write_text(after)
    done = "differs from its data: run python benchmarks/tables.py" if check else "rewritten"
    for path in stale:
        print(f"{path.relative_to(ROOT)}: {done}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
