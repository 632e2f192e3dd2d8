"""Where time does not suffice for all tests, which are left out."""

import zlib
from pathlib import Path

ROOT = Path(__file__).parents[1]
CODE = ("stitch", "sae", "matching", "tests", "benchmarks")


def begun_elsewhere(items: list, number: int) -> list:
    """The same tests, files in the same circle, but beginning with the `number`th file (modulo their number)."""
    files = list(dict.fromkeys(item.path for item in items))
    if not files:
        return items
    first = files[number % len(files)]
    start = next(place for place, item in enumerate(items) if item.path == first)
    return items[start:] + items[:start]


def of_this_state() -> int:
    """A number that is another one after every change of the code, and the same in all processes of a run."""
    number = 0
    for file in sorted(file for folder in CODE for file in (ROOT / folder).rglob("*.py")):
        number = zlib.crc32(file.read_bytes(), number)
    return number
