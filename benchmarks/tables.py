"""The tables in docs/findings, made from the JSON lines in benchmarks/results.

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

A list of `rows` has the rows' own names as labels, and a row "x; y" has either name. Without `rows` every record is a row and a
column is the template of its cell alone. Entries of mappings and lists are named with dots (`range.0`), and a paired difference
has the field `pair` ("name − minus"). In templates `{x/1e6:.1f}` divides, `{x*100:.1f}` multiplies, `{x+y:.1f}` adds, `{x:sci}`
is a power of ten, `{x:.3f±}` adds half the range of several records. A part in [brackets] is left out where a field of it is
missing; a cell whose other fields are missing is empty. Several records in one cell are averaged, or written one after the
other with `join`; `mark` follows a number whose 95 % interval (x_low, x_high) includes zero for at least one record.
"""

import itertools
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "findings"
RESULTS = ROOT / "benchmarks" / "results"
BLOCK = re.compile(r"(<!-- table: *([^\n]+)\n(.*?)-->\n).*?(<!-- end -->)", re.DOTALL)
FIELD = re.compile(r"\{([^{}:/*]+)(?:([/*])([0-9.e-]+))?(?::([^{}]*))?\}")
SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, *rows]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    return "\n".join([lines[0], "|" + "-|" * len(header), *lines[1:]]) + "\n"


def rewritten(page: str) -> str:
    return BLOCK.sub(lambda found: found[1] + "\n" + table(found[2], yaml.safe_load(found[3])) + "\n" + found[4], page)


def table(file: str, spec: dict) -> str:
    columns = [column if isinstance(column, dict) else {"cell": column} for column in spec["columns"].values()]
    columns = [{**spec, **column, "where": {**spec.get("where", {}), **column.get("where", {})}} for column in columns]
    header = list(spec["columns"])
    if "rows" not in spec:
        records = [record for record in read(file, spec.get("each")) if fits(record, spec.get("where", {}))]
        return markdown(header, [[cell([record], column) for column in columns] for record in records])
    labels = spec["rows"]
    if isinstance(labels, list):
        labels = {row: "`" + row.replace(" − ", "` − `") + "`" for row in labels}
    rows = [[label, *(crossing(file, row, column) for column in columns)] for row, label in labels.items()]
    return markdown([spec.get("corner", ""), *header], rows)


def crossing(file: str, row: object, column: dict) -> str:
    records = [record for record in read(file, column.get("each")) if fits(record, column["where"], row)]
    return cell(records, {**column, "cell": column["cell"].replace("{row}", str(row))})


def read(file: str, each: str | list[str] | None) -> Iterator[dict]:
    """Records of one or several files: lines, or the entries of a list or mapping in them, each with what stands around it."""
    for line in itertools.chain.from_iterable((RESULTS / name).read_text().splitlines() for name in file.split()):
        records = [json.loads(line)]
        for step in [each] if isinstance(each, str) else each or []:
            records = list(itertools.chain.from_iterable(entries(record, step) for record in records))
        for record in map(flat, records):
            yield (
                {**record, "pair": f"{record['name']} − {record['minus']}"}
                if "minus" in record and "name" in record
                else record
            )


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


def cell(records: list[dict], column: dict) -> str:
    join = column.get("join")
    groups = [[record] for record in records] if join else [records] if records else []
    return (join or "").join(filled(column["cell"], group, column.get("mark", "")) for group in groups)


def filled(template: str, records: list[dict], mark: str) -> str:
    template = re.sub(r"\[([^\]]*)\]", lambda part: text(part[1], records) or "", template)
    found = text(template, records) or ""
    first = FIELD.search(template)
    return found + mark if first and any(includes_zero(record, first[1]) for record in records) else found


def text(template: str, records: list[dict]) -> str | None:
    """The template with its fields filled in, None where a field is missing."""
    values = [[value(record, *field.group(1, 2, 3)) for record in records] for field in FIELD.finditer(template)]
    if any(number is None for numbers in values for number in numbers):
        return None
    written = iter(values)
    return FIELD.sub(lambda field: formatted(next(written), field[4] or ""), template)


def value(record: dict, key: str, operator: str | None, operand: str | None) -> object:
    keys = [key] if key in record else key.split("+")
    numbers = [record.get(key) for key in keys]
    found = numbers[0] if len(keys) == 1 else None if None in numbers else sum(numbers)
    if operator is None or found is None:
        return found
    return found / float(operand or 1) if operator == "/" else found * float(operand or 1)


def formatted(values: list, how: str) -> str:
    if isinstance(values[0], str):
        return values[0]
    if isinstance(values[0], bool):
        return "yes" if values[0] else "no"
    number = values[0] if len(values) == 1 else sum(values) / len(values)
    if how == "sci":
        mantissa, _, exponent = f"{number:.1e}".partition("e")
        return "0" if number == 0 else f"{mantissa} · 10{str(int(exponent)).translate(SUPERSCRIPT)}".replace("-", "−")
    spread = (max(values) - min(values)) / 2
    half_range = f" ± {spread:{how[:-1]}}" if how.endswith("±") and spread >= 0.0005 else ""
    return format(number, how.rstrip("±")).replace("-", "−") + half_range


def includes_zero(record: dict, key: str) -> bool:
    low, high = record.get(f"{key}_low"), record.get(f"{key}_high")
    return low is not None and high is not None and low <= 0 <= high


def main() -> int:
    check, stale = "--check" in sys.argv[1:], []
    for path in sorted(PAGES.glob("*.md")):
        before = path.read_text()
        after = rewritten(before)
        if before != after:
            stale.append(path)
            if not check:
                path.write_text(after)
    for path in stale:
        print(
            f"{path.relative_to(ROOT)}: {'differs from its data: run python benchmarks/tables.py' if check else 'rewritten'}"
        )
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
