import weakref

import pytest
import torch

import tiny
from stitch.errors import StitchError
from stitch.evaluation import scores as scores_module
from stitch.evaluation.scores import Batch, Scores, evaluate, whole_model
from stitch.text.windows import Windows

pytestmark = pytest.mark.numeric


def windows(count: int = 7, context: int = 9) -> Windows:
    ids = tiny.ids(count, context).int()
    return Windows(ids, (torch.arange(count) // 2)[:, None].expand(-1, context).int())


def test_cross_entropy_is_the_loss_that_the_model_itself_reports():
    model, text = tiny.model("llama"), windows()
    scores = evaluate({"m": whole_model(model.net)}, text, vocabulary=tiny.VOCABULARY)["m"]
    with torch.no_grad():
        loss = model.net(input_ids=text.ids.long(), labels=text.ids.long()).loss
    assert scores.ce == pytest.approx(float(loss), abs=1e-5)
    assert scores.tokens.tolist() == [16, 16, 16, 8]


def test_a_model_against_itself_has_no_divergence_and_full_agreement():
    model, other = tiny.model("llama"), tiny.model("qwen2")
    rows = {"same": whole_model(model.net), "other": whole_model(other.net)}
    scores = evaluate(rows, windows(), vocabulary=tiny.VOCABULARY, reference=rows["same"])
    same, different = scores["same"].row("same"), scores["other"].row("other")
    assert same["kl_to_b"] == pytest.approx(0, abs=1e-6) and same["top1"] == 1.0
    assert different["kl_to_b"] > 0.1 and different["top1"] < 0.9


def test_divergence_follows_its_definition():
    text = windows(2)
    p, q = tiny.noise(2, 9, 5), tiny.noise(2, 9, 5, seed=1)
    ids = Windows(text.ids % 5, text.document)
    scores = evaluate({"q": lambda _: q}, ids, vocabulary=5, reference=lambda _: p)["q"]
    log_p, log_q = p[:, :-1].log_softmax(-1), q[:, :-1].log_softmax(-1)
    assert scores.kl is not None
    assert float(scores.kl.sum() / 16) == pytest.approx(float((log_p.exp() * (log_p - log_q)).sum(-1).mean()), abs=1e-5)


def test_padding_rows_of_the_vocabulary_do_not_count():
    text = windows()
    logits = tiny.noise(7, 9, tiny.VOCABULARY)
    padded = torch.cat([logits, torch.full((7, 9, 10), 50.0)], -1)
    plain = evaluate({"m": lambda batch: logits[batch.rows]}, text, vocabulary=tiny.VOCABULARY)["m"]
    other = evaluate({"m": lambda batch: padded[batch.rows]}, text, vocabulary=tiny.VOCABULARY)["m"]
    assert plain.ce == other.ce


def test_little_memory_changes_only_the_batches():
    model, text, sizes = tiny.model("gpt2"), windows(), []

    def logits(batch: Batch) -> torch.Tensor:
        sizes.append(len(batch.ids))
        return whole_model(model.net)(batch)

    plenty = evaluate({"m": logits}, text, vocabulary=tiny.VOCABULARY)["m"].ce
    little = evaluate({"m": logits}, text, vocabulary=tiny.VOCABULARY, memory=4 * 9 * 128 * 4 * 6 * 2)["m"].ce
    assert sizes == [7, 2, 2, 2, 1]
    assert plenty == pytest.approx(little, abs=1e-6)


def test_parts_of_a_window_give_the_numbers_of_whole_windows(monkeypatch):
    """A row's logits and the reference's are held once each; everything computed from them is for some tokens at a time."""
    text = windows()
    p, q = tiny.noise(7, 9, tiny.VOCABULARY + 8), tiny.noise(7, 9, tiny.VOCABULARY + 8, seed=1)
    rows = {"q": lambda batch: q[batch.rows], "p": lambda batch: p[batch.rows]}
    arguments = {"vocabulary": tiny.VOCABULARY, "reference": rows["p"]}
    whole = evaluate(rows, text, **arguments)
    monkeypatch.setattr(scores_module, "CACHED", 4 * tiny.VOCABULARY * 3)  # three tokens of the eight in a window
    sizes, compute = [], torch.Tensor.log_softmax
    monkeypatch.setattr(torch.Tensor, "log_softmax", lambda x, dim: sizes.append(x.numel()) or compute(x, dim))
    parts = evaluate(rows, text, **arguments)
    assert max(sizes) <= 3 * tiny.VOCABULARY
    for name, found in whole.items():
        for column in ("nats", "kl", "agreements", "tokens"):
            assert torch.equal(getattr(found, column), getattr(parts[name], column)), (name, column)


def test_no_other_logits_are_there_while_those_of_a_row_are_computed():
    """With a vocabulary of 262,144, those of a window take half a gigabyte. Of the reference its probabilities are kept."""
    made: list[weakref.ref] = []
    alive = []

    def row(seed: int):
        def logits(batch: Batch) -> torch.Tensor:
            alive.append(sum(one() is not None for one in made))
            made.append(weakref.ref(found := tiny.noise(len(batch.ids), 9, tiny.VOCABULARY, seed=seed)))
            return found

        return logits

    rows = {"first": row(1), "reference": row(2), "last": row(3)}
    evaluate(rows, windows(), vocabulary=tiny.VOCABULARY, reference=rows["reference"], memory=4 * 9 * 128 * 4 * 6 * 2)
    assert alive == 4 * 3 * [0]


def test_the_interval_resamples_documents_not_tokens():
    tokens = torch.full((40,), 100.0, dtype=torch.float64)
    means = torch.linspace(2, 4, 40, dtype=torch.float64)
    low, high = Scores(means * 100, None, None, tokens).interval()
    error = float(means.std() / 40**0.5)
    assert low == pytest.approx(3 - 1.96 * error, abs=0.03) and high == pytest.approx(3 + 1.96 * error, abs=0.03)


def test_a_paired_difference_is_tighter_than_the_rows_it_compares():
    tokens = torch.full((40,), 100.0, dtype=torch.float64)
    nats = torch.linspace(200, 400, 40, dtype=torch.float64)
    better, worse = Scores(nats, None, None, tokens), Scores(nats + 5, None, None, tokens)
    assert worse.interval(minus=better) == pytest.approx((0.05, 0.05))
    low, high = worse.interval()
    assert high - low > 0.3


def test_logits_that_are_not_finite_are_refused_by_name():
    with pytest.raises(StitchError, match="broken gives NaN"):
        evaluate({"broken": lambda batch: torch.full((7, 9, 128), float("nan"))}, windows(), vocabulary=128)
