from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import tiny
from stitch.activations.harvest import harvest
from stitch.activations.paired import pair
from stitch.evaluation import scoring
from stitch.evaluation.racing import near_the_best, race, race_against
from stitch.evaluation.scores import Scores, carried_over, evaluate
from stitch.evaluation.stage import Stage
from stitch.report import card
from stitch.text.windows import Windows
from stitch.translation.types import Residual, Term, Translation

WINDOWS, MARGIN = 128, 0.01


class Race:
    """Rows with random losses per window, and a count of the windows that were scored."""

    def __init__(self, seed: int, spread: float = 0.1) -> None:
        generator = torch.Generator().manual_seed(seed)
        means = 3 + spread * torch.rand(12, generator=generator).double()
        text = torch.randn(WINDOWS, generator=generator).double()
        own = 0.1 * torch.randn(12, WINDOWS, generator=generator).double()
        self.losses = {f"row {number}": means[number] + text + own[number] for number in range(12)}
        self.document = torch.arange(WINDOWS) * 7 % 50
        self.scored = 0

    def score(self, names: list[str], part: range) -> dict[str, Scores]:
        self.scored += len(names) * len(part)
        tokens = torch.zeros(50, dtype=torch.float64).index_add_(
            0, self.document[part.start : part.stop], torch.full((len(part),), 100.0, dtype=torch.float64)
        )
        found = {}
        for name in names:
            losses = 100 * self.losses[name][part.start : part.stop]
            nats = torch.zeros_like(tokens).index_add_(0, self.document[part.start : part.stop], losses)
            found[name] = Scores(nats, None, None, tokens)
        return found


def tied(scores: dict[str, Scores]) -> set[str]:
    best = min(found.ce for found in scores.values())
    return {name for name, found in scores.items() if found.ce - best <= MARGIN}


def finalists(found: dict[str, Scores]) -> dict[str, Scores]:
    most = max(row.tokens.sum() for row in found.values())
    return {name: row for name, row in found.items() if row.tokens.sum() == most}


@pytest.mark.parametrize("spread", [0.02, 0.1, 1.0])
def test_a_race_keeps_every_row_that_ties_with_the_best(spread: float):
    for seed in range(40):
        rows = Race(seed, spread)
        whole = rows.score(list(rows.losses), range(WINDOWS))
        found = finalists(race(rows.losses, rows.score, WINDOWS, 16, near_the_best(MARGIN)))
        assert tied(found) == tied(whole), seed
        if torch.equal(next(iter(found.values())).tokens, whole["row 0"].tokens):
            assert all(found[name].ce == pytest.approx(whole[name].ce) for name in found)


def test_a_race_scores_less_text_the_more_the_rows_differ():
    scored = []
    for spread in (0.001, 0.5, 2.0):
        rows = Race(0, spread)
        race(rows.losses, rows.score, WINDOWS, 16, near_the_best(MARGIN))
        scored.append(rows.scored)
    assert scored[0] == 12 * WINDOWS and scored[1] < 0.7 * scored[0] and scored[2] < 0.4 * scored[0]


def test_too_little_text_for_an_interval_drops_nothing():
    rows = Race(0)
    rows.document = torch.zeros_like(rows.document)
    assert len(finalists(race(rows.losses, rows.score, WINDOWS, 16, near_the_best(MARGIN)))) == 12


def test_a_row_that_was_dropped_has_scores_on_all_text():
    inside, rows_dropped = 0, 0
    for seed in range(60):
        rows = Race(seed, spread=1.0)
        whole = rows.score(list(rows.losses), range(WINDOWS))
        best = min(whole, key=lambda name: whole[name].ce)
        found = race_against(best, rows.losses, rows.score, WINDOWS, 16, ["row 3"])
        assert found["row 3"].sample is None and torch.allclose(found["row 3"].nats, whole["row 3"].nats)
        for name, row in found.items():
            assert torch.equal(row.tokens, whole[name].tokens)
            if row.sample is None:
                assert row.ce == pytest.approx(whole[name].ce)
                continue
            rows_dropped += 1
            low, high = row.interval(minus=found[best])
            difference = whole[name].ce - whole[best].ce
            assert low < row.ce - found[best].ce < high
            inside += low <= difference <= high
    assert rows_dropped > 300 and inside / rows_dropped > 0.93  # 95 % intervals


def test_a_constant_row_is_carried_over_exactly():
    """Its loss has nothing to do with the composite's, so the composite must not correct it."""
    rows = Race(0)
    parts = [rows.score(["row 0"], part)["row 0"] for part in (range(16), range(WINDOWS))]
    constant = Scores(8 * parts[0].tokens, None, 0 * parts[0].tokens, parts[0].tokens)
    part, whole = (replace(row, agreements=row.tokens / 2) for row in parts)
    found = carried_over(constant, part, whole)
    assert found.ce == pytest.approx(8) and found.interval() == pytest.approx((8, 8))
    assert found.agreements is not None and found.agreements.sum() == 0


def test_an_interval_of_a_carried_over_row_has_the_freedom_of_its_sample():
    rows = Race(0)
    part, whole = (rows.score(["row 0", "row 1"], found) for found in (range(16), range(WINDOWS)))
    found = carried_over(part["row 1"], part["row 0"], whole["row 0"])
    assert found.sample is not None and found.row("row 1")["tokens"] == found.sample.sum() < found.tokens.sum()
    few, many = found.interval(), replace(found, sample=None).interval()
    assert few[0] < many[0] and many[1] < few[1]


def test_a_table_marks_rows_that_were_not_scored_on_all_text():
    scores = {"ce": 3.25, "ce_low": 3.0, "ce_high": 3.5}
    report = {
        "models": {"a": "a"}, "tokens": {"report": 8192},
        "results": [{"name": "b", **scores}, {"name": "floor:mean", "tokens": 4080, **scores}],
    }  # fmt: skip
    assert [row[1] for row in card.table(report)[1]] == ["3.250", "~3.250"]
    assert "first 4,080 tokens" in " ".join(card.footnotes(report))
    assert "~" not in " ".join(card.footnotes({**report, "results": report["results"][:1]}))


def test_rows_that_may_be_as_good_are_scored_to_the_end():
    rows = Race(1, spread=0.0)
    found = race_against("row 0", rows.losses, rows.score, WINDOWS, 16, [])
    assert all(row.sample is None for row in found.values()) and rows.scored == 12 * WINDOWS


def test_the_choice_is_that_of_scoring_every_row_on_all_text(tmp_path, monkeypatch: pytest.MonkeyPatch):
    a, b = tiny.model("gpt2"), tiny.model("llama")
    ids = tiny.ids(64, 16).int()
    windows = Windows(ids, (torch.arange(64) % 40)[:, None].expand(-1, 16).int())
    paired = pair(harvest(a, windows, [2], tmp_path / "a"), harvest(b, windows, [3], tmp_path / "b"), 2, 3)
    on = Stage(a, b, 2, 3, paired, 2**30)
    x, y = on.stream(2, slice(0, 64)), on.y(slice(0, 64))
    weight = torch.linalg.lstsq(x.flatten(0, 1), y.flatten(0, 1)).solution
    fitted: Any = SimpleNamespace(translations={}, left_out=[])
    for number, noise in enumerate((0.0, 0.02, 0.05, 0.5, 2.0)):
        changed = weight + noise * tiny.noise(*weight.shape, seed=number)
        fitted.translations[f"translation:{number}"] = Translation(
            f"{number}", (Term(Residual(2), changed),), torch.zeros(b.width), y[0, 0]
        )
    settings: Any = SimpleNamespace(translation="auto", memory=2**30)
    whole = evaluate(
        {name: on.translated(found) for name, found in fitted.translations.items()},
        windows,
        vocabulary=tiny.VOCABULARY,
    )
    best = min(whole, key=lambda name: whole[name].ce)
    monkeypatch.setattr(scoring, "FIRST", 8 * 16)
    monkeypatch.setattr(scoring, "TIE", 0.0)
    assert scoring.choose(settings, fitted, fitted.translations, on, None) == best
    monkeypatch.setattr(scoring, "TIE", 1e9)  # the first, as all cost the same and the best cross-entropy decides
    assert scoring.choose(settings, fitted, fitted.translations, on, None) == best
