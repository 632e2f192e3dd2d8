"""The ledger: one JSON line for each of the project's 28 founding conjectures, made from results and from the answers of pages.

    python benchmarks/conjectures/ledger.py > benchmarks/results/ledger.jsonl

Measures nothing. Verdicts of the conjectures that have a script here are those of its lines, by the rule in its head.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from _lines import read  # noqa: E402 (found by the line above)

RESULTS, PAGES = ROOT / "benchmarks" / "results", ROOT / "docs" / "findings"
UNNUMBERED = "1, 2, 6–9, 11, 24"  # the numbers of the eight below; which is whose is not in the project's records


@dataclass(frozen=True)
class Entry:
    """`numbers` are places in the founding list. `evidence` gives the numbers as a sentence, from results or from a page."""

    numbers: str
    claim: str
    verdict: str
    evidence: Callable[[], str]
    documents: Callable[[], str] = lambda: ""
    page: str = ""


def lines(conjecture: str, file: str = "conjectures") -> list[dict]:
    return [line for line in read(RESULTS / f"{file}.jsonl") if line["conjecture"] == conjecture]


def answer(page: str) -> Callable[[], str]:
    """The answer of a page: its second paragraph."""
    return lambda: (PAGES / f"{page}.md").read_text().split("\n\n", 2)[1]


def signed(found: dict) -> str:
    return f"{found['ce']:+.4f} ({found['ce_low']:+.4f} to {found['ce_high']:+.4f})".replace("-", "−")
