"""Cells of the tables in docs/findings: a template is filled in from the records that belong to the cell.

`{x:.3f}` is a field in Python's format, `{x/1e6:.1f}` divides it, `{x*100:.1f}` multiplies it, `{x+y:.1f}` adds two,
`{x:sci}` is a power of ten, and `{x:.3f±}` adds half the range of several records. A part in [brackets] is left out
when one of its fields is missing; a cell is empty when any other field is missing. Several records are averaged, or
listed one after another with `join`. `mark` is added after a number whose 95 % interval (x_low, x_high) includes zero
for at least one record.
"""

import re

FIELD = re.compile(r"\{([^{}:/*]+)(?:([/*])([0-9.e-]+))?(?::([^{}]*))?\}")
SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def cell(group: list[dict], column: dict) -> str:
    join = column.get("join")
    groups = [[record] for record in group] if join else [group] if group else []
    return (join or "").join(filled(column["cell"], part, column.get("mark", "")) for part in groups)


def filled(template: str, group: list[dict], mark: str) -> str:
    template = re.sub(r"\[([^\]]*)\]", lambda part: text(part[1], group) or "", template)
    found = text(template, group) or ""
    first = FIELD.search(template)
    return found + mark if first and any(includes_zero(record, first[1]) for record in group) else found


def text(template: str, group: list[dict]) -> str | None:
    """The template with its fields filled in, or None if a field is missing."""
    values = [[value(record, *field.group(1, 2, 3)) for record in group] for field in FIELD.finditer(template)]
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
