"""`benchmarks/racing.py` still reaches the choice and the rows of a join, and compares both ways of scoring them."""

from pathlib import Path

import pytest
import racing

import jobs
from stitch.evaluation import scoring
from stitch.jobs import join


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """The functions that the benchmark replaces are put back after the test."""
    for name in ("choose", "evaluate_all", "alternatives"):
        monkeypatch.setattr(join, name, getattr(join, name))
    for name in ("FIRST", "LEAST_WINDOWS"):
        monkeypatch.setattr(scoring, name, getattr(scoring, name))


@pytest.mark.slow
@pytest.mark.usefixtures("restored")
def test_a_pair_is_scored_both_ways_on_the_same_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(racing, "FIRST", 256)  # the text is short
    scoring.LEAST_WINDOWS = 4
    folders = jobs.gpt2_and_qwen3(tmp_path)
    asked = jobs.settings(folders["gpt2"], folders["qwen3"], folders["text"], held_out=1024, reference_steps=0)
    found = racing.compared(asked, tmp_path / "work", ["racing", "all"])
    assert set(found["choice"]["chosen"]) == set(found["choice"]["seconds"]) == {"racing", "all"}
    report = found["report"]
    assert 0 < report["dropped"] < report["rows"] and report["tokens"] > 512
    assert 0 <= report["inside"] <= report["dropped"] and report["largest_error"] > 0
