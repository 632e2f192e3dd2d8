"""Adding a translation takes one file and one entry in the registry of rows; a temporary translation shows it."""

import runpy
from pathlib import Path

import pytest

import tiny
from jobs import settings, write_text
from stitch.commands.reference import command_table
from stitch.config import Settings
from stitch.errors import UsageError
from stitch.jobs.join import stitch
from stitch.report.card import table
from stitch.translation import rows as registry
from stitch.translation.rows import ROWS, Row

# The file: a function of what closed forms are computed from.
MOVED = '''
from stitch.translation.baselines import mean_shift

def moved(given):
    """A's stream, moved to B's mean."""
    return mean_shift(given.site, given.moments)
'''

# The registry entry.
ENTRY = Row(
    name="translation:moved",
    help="A throw-away translation of a test.",
    reads=("x",),
    costs="no product",
    made_by="moved_translation:moved",
    brief=True,
)


@pytest.fixture
def with_moved(tmp_path: Path, monkeypatch):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "moved_translation.py").write_text(MOVED)
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.setattr(registry, "ROWS", (*ROWS, ENTRY))


def test_a_file_and_an_entry_add_a_translation(with_moved, tmp_path: Path):
    a, b = tiny.save(tmp_path / "a", "gpt2"), tiny.save(tmp_path / "b", "qwen3", seed=1, hidden_size=48)
    asked = settings(a, b, write_text(tmp_path), translation="moved", brief=True, reference_steps=None)
    report, folder = stitch(asked, tmp_path / "out")
    assert report["chosen"] == "moved" and (folder / "model.safetensors").exists()
    scores = {row["name"]: row["ce"] for row in report["results"]}
    assert scores["composite"] == pytest.approx(scores["translation:moved"], abs=1e-6)
    assert any(cells[0] == "translation:moved" for cells in table(report)[1])


def test_a_translation_without_an_entry_is_refused():
    with pytest.raises(UsageError, match=r"translation must be one of auto, identity, .*; got 'moved'"):
        Settings(model_a="a", model_b="b", layer=1, translation="moved")


def test_the_help_of_join_names_every_translation():
    (join,) = (page for page in command_table() if page.path == "join")
    (option,) = (one for one in join.parameters if one.name == "translation")
    missing = [name for name in registry.translations() if name not in option.help]
    assert missing == []


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_an_entry_is_complete(row: Row):
    names = [found.name for found in ROWS]
    assert names.count(row.name) == 1
    assert row.help.endswith(".") and (row.help[0].isupper() or row.help[0] == "`")
    for other in (row.base, row.compared_with):
        assert other is None or other in names
    assert (row.base is not None) == (row.made_by in (registry.ROUTES, registry.TABLES))
    if row.kind == "null":
        assert row.compared_with is not None, "a null says what it is the null of"
    if row.made_by and ":" in row.made_by:
        from stitch.translation.least_squares import function_of

        assert callable(function_of(row))


def test_the_page_on_reports_shows_all_rows_of_the_registry():
    script = runpy.run_path(str(Path(__file__).parent.parent / "docs" / "rows.py"))
    page = script["PAGE"].read_text()
    assert script["rewritten"](page) == page, "run python docs/rows.py"
    assert {kind for _, kind, _ in script["BLOCK"].findall(page)} == set(script["KINDS"])
