"""The pages in docs/findings: their tables come from data, they have the same parts, and every page and link can be
reached.
"""

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import tables  # noqa: E402

FINDINGS = ROOT / "docs" / "findings"
PAGES = sorted(path for path in FINDINGS.glob("*.md") if path.name != "index.md")
INDEX, BENCHMARKS = FINDINGS / "index.md", ROOT / "benchmarks" / "README.md"
LINK = re.compile(r"\]\(([^)\s]+)\)")
name = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def links(page: Path) -> set[Path]:
    found = (link.partition("#")[0] for link in LINK.findall(page.read_text()) if "://" not in link)
    return {(page.parent / link).resolve() for link in found if link}


@pytest.mark.parametrize("page", [*PAGES, INDEX, tables.MODELS], ids=lambda page: page.stem)
def test_tables_agree_with_the_data(page: Path):
    text = page.read_text()
    assert tables.rewritten(text) == text, f"{page.name} differs from its data: run python benchmarks/tables.py"


@name
def test_no_table_is_written_by_hand(page: Path):
    rest = tables.BLOCK.sub("", page.read_text())
    assert not re.search(r"^\|", rest, re.MULTILINE), f"{page.name} has a table without data"


@name
def test_a_page_has_a_question_an_answer_a_command_and_limits(page: Path):
    question, answer, rest = page.read_text().split("\n\n", 2)
    assert re.fullmatch(r"# .*\?", question), f"{page.name}: the title is no question"
    assert "\n" not in answer and re.search(r"\d", answer) and answer.endswith("."), (
        f"{page.name}: no answer in one line"
    )
    assert len(answer.split()) <= 48, f"{page.name}: keep the answer short, and put its numbers into the next paragraph"
    assert re.search(r"^## Rerun\n\n.+^## Limits\n\n.+", rest, re.MULTILINE | re.DOTALL), (
        f"{page.name}: a part is missing"
    )


@name
def test_a_page_is_in_both_indices(page: Path):
    assert page in links(INDEX), f"add {page.stem} to a list of pages in docs/findings/index.md"
    assert page in links(BENCHMARKS), f"link {page.name} in benchmarks/README.md"


@pytest.mark.parametrize("page", [*PAGES, INDEX, BENCHMARKS], ids=lambda page: page.stem)
def test_links_and_figures_exist(page: Path):
    assert {link for link in links(page) if not link.exists()} == set()


def test_every_figure_is_shown_and_every_script_listed():
    shown = set().union(*map(links, PAGES))
    assert {figure for figure in (ROOT / "benchmarks" / "figures").iterdir() if figure not in shown} == set()
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("[a-z]*.py")} - {"tables", "figures"}
    assert {script for script in scripts if f"`{script}`" not in BENCHMARKS.read_text()} == set()


def test_the_index_of_benchmarks_is_short():
    assert len(BENCHMARKS.read_text().split()) < 600


def test_cells_of_several_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lines = [
        {"seed": 0, "results": [{"name": "x", "ce": 1.0, "ce_low": -0.5, "ce_high": 2.0}, {"name": "y", "ce": -3.0}]},
        {"seed": 1, "results": [{"name": "x", "ce": 2.0, "ce_low": 1.0, "ce_high": 3.0}]},
    ]
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    spec = {
        "each": "results",
        "rows": {"x": "both seeds", "y": "one"},
        "columns": {
            "mean": {"where": {"name": "{row}"}, "cell": "{ce:.2f±}", "mark": "°"},
            "each": {"where": {"name": "{row}"}, "cell": "{ce:+.1f}[ from {ce_low:.1f}]", "join": ", "},
        },
    }
    assert tables.table("lines.jsonl", spec).splitlines()[2:] == [
        "| both seeds | 1.50 ± 0.50° | +1.0 from −0.5, +2.0 from 1.0 |",
        "| one | −3.00 | −3.0 |",
    ]


def test_records_as_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lines = [{"bytes": 2_500_000, "parts": {"a": 1, "b": 2}, "range": [0.5, 1.5]}, {"bytes": 1e-6}]
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    columns = {"MB": "{bytes/1e6:.1f}", "sum": "{parts.a+parts.b:.0f}", "high": "{range.1}", "exact": "{bytes:sci}"}
    assert tables.table("lines.jsonl", {"columns": columns}).splitlines() == [
        "| MB | sum | high | exact |",
        "|-|-|-|-|",
        "| 2.5 | 3 | 1.5 | 2.5 · 10⁶ |",
        "| 0.0 |  |  | 1.0 · 10⁻⁶ |",
    ]


@pytest.mark.parametrize("file", sorted(tables.RESULTS.glob("*.jsonl")), ids=lambda file: file.stem)
def test_results_name_no_folder_of_the_machine_that_they_were_made_on(file):
    found = [value for line in file.read_text().splitlines() for value in strings(json.loads(line))]
    assert [value for value in found if value.startswith("/") or ":\\" in value] == []


def strings(value) -> list[str]:
    """Every text in a value of JSON."""
    if isinstance(value, (dict, list)):
        return [text for one in (value.values() if isinstance(value, dict) else value) for text in strings(one)]
    return [value] if isinstance(value, str) else []
