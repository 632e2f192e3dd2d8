"""Edits by methods of other work: updates on hand-made keys, values on a pico model, and the search for their options."""

import conversions_consolidate
import pytest
import torch
from _consolidate_peers import CLAMP, by_moment, in_null_space, null_space, once, peers, spread, values
from conversions_consolidate import kl_of, measured, one_after_another, scaled

import tiny
from recurrent import windows
from stitch.conversions.consolidation import fitting
from stitch.conversions.consolidation.arms import ModelAndText, prepare
from stitch.conversions.consolidation.queries import PrefixedQueries, label_queries, score_queries
from stitch.conversions.consolidation.slow_weights import (
    LARGEST,
    Curvature,
    down_projection,
    edited_parameters,
    measure_curvature,
)
from stitch.text.documents import SPLITS

NEURONS, WIDTH = 6, 3
KEYS = tiny.noise(4, NEURONS).double()
WANTED = tiny.noise(4, WIDTH, seed=1).double()


def moment(*eigenvalues: float) -> Curvature:
    """C with these eigenvalues, in turned axes."""
    axes = torch.linalg.qr(tiny.noise(NEURONS, NEURONS, seed=2).double()).Q
    return Curvature({0: axes * torch.tensor(eigenvalues).double() @ axes.T}, {})


def axes_of(curvature: Curvature) -> torch.Tensor:
    return torch.linalg.qr(tiny.noise(NEURONS, NEURONS, seed=2).double()).Q


# --- updates -------------------------------------------------------------------------------------------------------


@pytest.mark.numeric
def test_memit_is_the_papers_formula_and_one_key_reaches_its_target_without_other_text():
    other = moment(1, 2, 3, 4, 5, 6)
    columns, missing, covariance = KEYS.T, WANTED.T, other.neurons[0]
    paper = missing @ columns.T @ torch.linalg.inv(2.5 * covariance + columns @ columns.T)
    torch.testing.assert_close(by_moment(other, 2.5)(0, KEYS, WANTED), paper.T)
    one = by_moment(other, 1e-9)(0, KEYS[:1], WANTED[:1])
    torch.testing.assert_close(KEYS[:1] @ one, WANTED[:1])


@pytest.mark.numeric
def test_alphaedit_is_the_papers_formula_and_changes_nothing_for_keys_in_the_kept_space():
    other = moment(0, 0, 1e-3, 0.5, 2, 9)
    solve, basis = in_null_space(other, 0.02, 0.3), null_space(other.neurons[0], 0.02)
    columns, missing, projection = KEYS.T, WANTED.T, basis @ basis.T
    paper = missing @ columns.T @ projection
    paper = paper @ torch.linalg.inv(columns @ columns.T @ projection + 0.3 * torch.eye(NEURONS, dtype=torch.float64))
    found = solve(0, KEYS, WANTED)
    torch.testing.assert_close(found, paper.T)
    kept = axes_of(other)[:, 3:].T
    assert (kept @ found).abs().max() < 1e-12 < 0.01 < (KEYS @ found).abs().max()
    free = KEYS @ projection
    exact = in_null_space(other, 0.02, 1e-12)(0, free[:3], WANTED[:3])
    torch.testing.assert_close(free[:3] @ exact, WANTED[:3], rtol=1e-5, atol=1e-5)


# --- on a pico model -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def setup() -> ModelAndText:
    return prepare(tiny.model("gpt2"), {split: windows(32, seed=seed) for seed, split in enumerate(SPLITS)})


@pytest.fixture(scope="module")
def labelled(setup):
    document, asked = tiny.ids(1, 20, seed=5)[0], tiny.ids(3, 16, seed=6)
    return label_queries(setup.model, document, asked)


@pytest.mark.parametrize("rate", [0.01, 10.0])
def test_values_move_away_from_their_streams_and_are_clamped(setup, labelled, rate):
    groups = once(labelled, setup.windows["fit"])
    asked, prefixes = [labelled.queries[rows] for rows, _ in groups], [before for _, before in groups]
    point = {"stream": (setup.model.blocks[3], False)}
    stream = fitting.capture(setup.model, point, prefixes, asked, {})["stream"]
    found = values(setup.model, labelled, groups, 3, rate=rate, steps=8)
    longest = ((found - stream).norm(dim=1) / stream.norm(dim=1)).max()
    assert longest == pytest.approx(CLAMP, rel=1e-4) if rate == 10.0 else 0 < longest < CLAMP


def test_an_edit_spread_over_blocks_reaches_its_values_where_keys_are_fewer_than_neurons(setup, labelled):
    model, groups = setup.model, once(labelled, setup.windows["fit"])
    wanted = values(model, labelled, groups, 3, rate=0.01, steps=8)
    curvature = Curvature({b: 1e-9 * torch.eye(48).double() for b in range(model.depth)}, {})
    edit = spread(model, wanted, labelled, groups, range(2, 4), by_moment(curvature, 1.0))
    assert set(edit) == {2, 3}
    asked, prefixes = [labelled.queries[rows] for rows, _ in groups], [before for _, before in groups]
    point = {"stream": (model.blocks[3], False)}
    after = fitting.capture(model, point, prefixes, asked, edited_parameters(model, edit))["stream"]
    torch.testing.assert_close(after, wanted, rtol=1e-3, atol=1e-3)
    (rows, before), *_ = groups
    some = label_of(labelled, rows)
    asked_again = PrefixedQueries(some, before)
    gone, left = (
        float(kl_of(score_queries(model, asked_again, changed)).nats.sum())
        for changed in ({}, edited_parameters(model, edit))
    )
    assert left < 0.9 * gone


def label_of(labelled, rows):
    return type(labelled)(labelled.queries[rows], labelled.target[rows])


def test_peers_edit_the_blocks_that_they_are_asked_for(setup, labelled):
    model, pool = setup.model, setup.windows["fit"]
    found = peers(model, labelled, pool, measure_curvature(model, pool))
    how = {"first": 1, "last": 3, "rate": 0.01, "steps": 2}
    edits = {
        "memit": found["memit"](strength=10.0, **how),
        "alphaedit": found["alphaedit"](threshold=1.0, penalty=1.0, **how),
        "context distillation": found["context distillation"](rate=0.01, steps=2),
    }
    assert [sorted(edit) for edit in edits.values()] == [[1, 2, 3], [1, 2, 3], list(range(model.depth))]
    assert all(0 < one.norm() < 100 for edit in edits.values() for one in edit.values())


# --- their options -------------------------------------------------------------------------------------------------


def test_options_are_chosen_one_after_another_within_the_model():
    def kept(choice):
        return -10 * abs(choice["last"] - 2) - abs(choice["strength"] - 5 * choice["last"])

    options = {"last": [1, 2, 9], "first": [1, 3], "strength": [5, 10]}
    best = []

    def search():
        best.extend((yield from one_after_another({"last": 1, "first": 1, "strength": 5}, options, kept, "it", 6)))

    assert [tuple(line["choice"].values()) for line in search()] == [(1, 1, 5), (2, 1, 5), (2, 1, 10)]
    assert best == [{"last": 2, "first": 1, "strength": 10}, 0]


def test_an_edit_that_is_too_short_for_the_largest_factor_is_lengthened(setup):
    edit = {0: 0.01 * tiny.noise(*down_projection(setup.model, 0).shape)}

    class Costly(ModelAndText):
        def scale(self, edit, budget):
            return min(LARGEST, budget / float(edit[0].norm()))

    found, factor = scaled(Costly(setup.model, setup.windows), edit, 30 * float(edit[0].norm()))
    assert factor < LARGEST
    assert factor * found[0].norm() == pytest.approx(30 * float(edit[0].norm()), rel=1e-5)


def test_a_summary_of_documents_that_were_measured_before_needs_no_model(setup, monkeypatch):
    def line(document: str, without: float, ours: float, other: float, with_: float) -> dict:
        nats = {"without context": without, "with context": with_, "converted": ours, "peer:memit": other}
        kl = {"with context": 0.0}
        scores = {
            row: {condition: [value, kl.get(row, 2.0), 1.0, 10.0] for condition in ("unseen", "none")}
            for row, value in nats.items()
        }
        return {"document": document, "costs": {"converted": 0.02, "peer:memit": 0.01}, "scores": scores}

    lines = [line("one", 40, 30, 35, 20), line("two", 50, 30, 40, 30)]
    listed = [(name, torch.zeros(1)) for name in ("before", "one", "two")]
    monkeypatch.setattr(conversions_consolidate, "documents", lambda setup, split, count: listed)
    rows = {row["row"]: row for row in measured(setup, setup, 2, 0.02, lines, lambda document: {})}
    assert rows["converted"]["unseen"]["kept_percent"] == 75  # of 40 nats
    assert rows["peer:memit"]["none"]["kept_percent"] == 37.5
    peer = rows["peer:memit"]["unseen"]
    assert (peer["ce"], peer["kl"], peer["minus_ce"], peer["minus_kl"]) == (3.75, 0.2, -0.75, 0)
    assert peer["minus_ce_low"] < -0.75 < peer["minus_ce_high"] and rows["peer:memit"]["cost"] == 0.01
    assert [rows[row]["unseen"]["kept_percent"] for row in ("without context", "with context")] == [0, 100]
