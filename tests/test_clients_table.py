"""The table of docs/clients.md names the versions that constraints.txt pins."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
# By the names in the table. Programs that are not here are pinned nowhere.
DISTRIBUTIONS = {
    **{
        "transformers": "transformers",
        "torch": "torch",
        "lm-eval": "lm-eval",
        "accelerate": "accelerate",
        "PEFT": "peft",
    },
    **{"TRL": "trl", "SAELens": "sae-lens", "TransformerLens": "transformer-lens"},
}
ELSEWHERE = {"xllamacpp", "eai-sparsify", "dictionary-learning"}


def pinned() -> dict[str, str]:
    """Of the Pythons that the project is tested on, without the marker for older ones."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = [re.fullmatch(r"([\w.-]+)==([^;\s]+)(?:; (.*))?", line) for line in lines]
    return {one[1].lower().replace("_", "-"): one[2] for one in found if one and "<" not in (one[3] or "")}


def named() -> list[tuple[str, str]]:
    """Programs and versions of the table; a version without a name is that of the row's program."""
    page = (ROOT / "docs/clients.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in page.splitlines() if line.startswith("| ")]
    rows = [row for row in rows if row[0] != "Program"]
    pairs = [(row, part.split()) for row in rows for part in row[1].split(", ")]
    return [(words[0] if len(words) == 2 else row[0], words[-1]) for row, words in pairs if words[-1][0].isdigit()]


def test_versions_in_the_table_are_those_that_are_pinned():
    versions, found = pinned(), dict(named())
    assert set(found) == set(DISTRIBUTIONS) | ELSEWHERE
    assert {name: found[name] for name in DISTRIBUTIONS} == {
        name: versions[distribution] for name, distribution in DISTRIBUTIONS.items()
    }
    assert not ELSEWHERE & set(versions)
