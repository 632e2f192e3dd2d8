"""Where time does not suffice for all tests, which are left out."""

import zlib
from pathlib import Path

CHANGES = Path(__file__).parents[1] / "CHANGELOG.md"


def begun_elsewhere(items: list, number: int) -> list:
    """The same tests, files in the same circle, but beginning with the `number`th file (modulo their number)."""
    files = list(dict.fromkeys(item.path for item in items))
    if not files:
        return items
    first = files[number % len(files)]
    start = next(place for place, item in enumerate(items) if item.path == first)
    return items[start:] + items[:start]


def of_this_state() -> int:
    """A number that is another one with almost every change of the project, and the same in all processes of a run."""
    return zlib.crc32(CHANGES.read_bytes())
