"""Cross-entropy by position and frequency: compared with sums over single tokens, with no other number changed."""

import math

import pytest
import torch

from stitch.evaluation.bins import Bins
from stitch.evaluation.breakdown import breakdown
from stitch.evaluation.scores import evaluate
from stitch.evaluation.unseen import MEAN_ROW, loss_at_unseen
from stitch.text.windows import Windows

CONTEXT, VOCABULARY, WINDOWS = 13, 11, 9


def windows(seed: int) -> Windows:
    generator = torch.Generator().manual_seed(seed)
    weights = 1.0 / (1 + torch.arange(VOCABULARY, dtype=torch.float64)) ** 2
    ids = (
        torch.multinomial(weights, WINDOWS * CONTEXT, replacement=True, generator=generator)
        .view(WINDOWS, CONTEXT)
        .int()
    )
    document = torch.arange(WINDOWS, dtype=torch.int32)[:, None].expand(-1, CONTEXT) // 2
    return Windows(ids, document.contiguous())


def random_logits(seed: int):
    table = torch.randn(WINDOWS, CONTEXT, VOCABULARY, generator=torch.Generator().manual_seed(seed))
    return lambda batch: table[batch.rows]


ROWS = {"a": random_logits(1), "b": random_logits(2), "composite": random_logits(3)}


@pytest.fixture(scope="module")
def fit() -> Windows:
    return windows(0)


@pytest.fixture(scope="module")
def bins(fit) -> Bins:
    return Bins.of(fit, CONTEXT, VOCABULARY)


def scored(bins: Bins | None, part: range | None = None):
    return evaluate(ROWS, windows(5), vocabulary=VOCABULARY, part=part, bins=bins, binned=("a", "composite"))


def nats_by_token(name: str) -> list[tuple[int, int, float]]:
    """Number of tokens read, predicted token, nats: of every prediction."""
    text = windows(5)
    found = []
    for window in range(WINDOWS):
        log = ROWS[name](type("Batch", (), {"rows": slice(window, window + 1)}))[0].log_softmax(-1)
        for place in range(CONTEXT - 1):
            target = int(text.ids[window, place + 1])
            found.append((place + 1, target, -float(log[place, target])))
    return found


def test_bins_of_position_are_powers_of_two_and_end_with_the_window(bins):
    assert bins.positions == ["1", "2–3", "4–7", "8–12"]
    assert bins.of_position.tolist() == [0, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 3]
    assert Bins.of(windows(0), 512, VOCABULARY).positions[-1] == "256–511"


def test_bins_of_frequency_are_those_of_the_fitted_text(fit, bins):
    counts = torch.bincount(fit.ids[:, 1:].flatten(), minlength=VOCABULARY)
    rates = 1e6 * counts / counts.sum()
    for token in range(VOCABULARY):
        label = bins.frequencies[int(bins.of_token[token]) - len(bins.positions)]
        if not counts[token]:
            assert label == "never"
        else:
            low = 0 if label.startswith("up to") else int(label.split("–")[0].removeprefix("above ").replace(",", ""))
            assert label != "never" and rates[token] > low


@pytest.mark.parametrize("kind", ["position", "frequency"])
def test_a_bin_has_the_mean_over_its_tokens(bins, kind):
    found = breakdown(bins, scored(bins), ["a", "composite"], windows(5))[kind]
    labels = bins.positions if kind == "position" else bins.frequencies
    expected: dict[str, list[float]] = {}
    for read, target, nats in nats_by_token("composite"):
        number = bins.of_position[read - 1] if kind == "position" else bins.of_token[target] - len(bins.positions)
        expected.setdefault(labels[int(number)], []).append(nats)
    assert [one["bin"] for one in found] == [label for label in labels if label in expected]
    for one in found:
        nats = expected[one["bin"]]
        assert one["tokens"] == len(nats)
        assert one["rows"]["composite"]["ce"] == pytest.approx(sum(nats) / len(nats), rel=1e-6)
        row = one["rows"]["a"]
        assert row["minus_composite"]["ce"] == pytest.approx(row["ce"] - one["rows"]["composite"]["ce"], abs=1e-9)
        assert row["ce_low"] is None or row["ce_low"] < row["ce"] < row["ce_high"]


def test_bins_change_no_other_number_and_add_up_over_parts(bins):
    whole, plain = scored(bins), scored(None)
    for name in ROWS:
        assert torch.equal(whole[name].nats, plain[name].nats)
    assert whole["b"].binned is None and plain["a"].binned is None
    early, late = scored(bins, range(0, 4)), scored(bins, range(4, WINDOWS))
    together = (early["composite"] + late["composite"]).binned
    assert torch.allclose(together, whole["composite"].binned)
    assert math.isclose(
        float(together[: len(bins.positions)].sum()), float(whole["composite"].nats.sum()), rel_tol=1e-9
    )


def test_a_bin_of_one_document_has_no_interval(fit):
    text = windows(5)
    alone = Windows(text.ids, torch.zeros_like(text.document))
    bins = Bins.of(fit, CONTEXT, VOCABULARY)
    scores = evaluate(ROWS, alone, vocabulary=VOCABULARY, bins=bins, binned=("composite",))
    row = breakdown(bins, scores, ["composite"], alone)["position"][0]["rows"]["composite"]
    assert row["ce_low"] is None and row["ce_high"] is None


@pytest.mark.parametrize("counts_all", [True, False])
def test_predictions_at_tokens_without_a_row_are_counted_apart(fit, counts_all: bool):
    text, with_row = windows(5), torch.tensor([0, 2, 3])
    counted = None if counts_all else torch.arange(VOCABULARY) != 1
    bins = Bins.of(fit, CONTEXT, VOCABULARY, with_row)
    rows = {**ROWS, MEAN_ROW: ROWS["a"]}
    scores = evaluate(rows, text, vocabulary=VOCABULARY, bins=bins, binned=rows, counted=counted)
    found = loss_at_unseen(bins, scores, text, counted, comparable=True)
    assert found is not None
    by_row = {"b": "b", "fallback": "composite", "mean_row": "a"}
    for name, row in by_row.items():
        apart: dict[bool, list[float]] = {True: [], False: []}
        for number, (read, target, nats) in enumerate(nats_by_token(row)):
            at = int(text.ids[number // (CONTEXT - 1), read - 1])
            if counts_all or target != 1:
                apart[at in (0, 2, 3)].append(nats)
        assert found["ce_without_rows"][name] == pytest.approx(sum(apart[False]) / len(apart[False]), rel=1e-6)
        assert found["ce_with_rows"][name] == pytest.approx(sum(apart[True]) / len(apart[True]), rel=1e-6)
        assert found["tokens_without_rows"] == len(apart[False])
        assert found["tokens"] == len(apart[False]) + len(apart[True])
    without_b = loss_at_unseen(bins, scores, text, counted, comparable=False)
    assert without_b is not None and "b" not in without_b["ce_with_rows"]


def test_nothing_is_told_of_tokens_without_rows_where_there_are_none(fit):
    for with_row in (None, torch.arange(VOCABULARY)):
        bins = Bins.of(fit, CONTEXT, VOCABULARY, with_row)
        scores = evaluate(
            {**ROWS, MEAN_ROW: ROWS["a"]}, windows(5), vocabulary=VOCABULARY, bins=bins, binned=[*ROWS, MEAN_ROW]
        )
        assert loss_at_unseen(bins, scores, windows(5), None, comparable=True) is None
