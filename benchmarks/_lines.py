"""Reads the JSON lines that benchmarks print."""

import json
from pathlib import Path


def read(path: str | Path) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]
