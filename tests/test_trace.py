"""`stitch eval --trace`: a document that was learned and covered up is found, and none where there is none."""

import json
import random
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import stitch
import tiny
from cli import app
from stitch.errors import StitchError
from stitch.evaluation.intervals import departure
from stitch.evaluation.relearning import area, in_pieces, learn, restored
from stitch.models.loading import load

WORDS = "feature model layer token stream weight matrix norm head block early late match pair plan".split()
SMALL: dict = dict(controls=10, rate=1e-3, tokens=256, context=64, device="cpu", quiet=True)


def _lines(count: int, seed: int, words: int = 12) -> list[str]:
    drawn = random.Random(seed)
    return [" ".join(drawn.choices(WORDS, k=words)) for _ in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model that never saw the note; one that learned it and was covered up by noise; one that learned another note so."""
    place = tmp_path_factory.mktemp("traces")
    (place / "text.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in _lines(1200, 1)))
    note, other = _lines(1, 2, 6)[0], _lines(1, 3, 6)[0]
    (place / "note.txt").write_text(note)
    tiny.save(place / "never", "gpt2")
    for name, text in (("learned", note), ("other", other)):
        model = load(place / "never")
        ids = torch.tensor(model.tokenizer.encode(text, add_special_tokens=False))
        model.net.requires_grad_(True)
        learn(model.net, in_pieces(ids, tiny.BOS, 64), 1e-3, steps=12)
        with torch.no_grad():
            for number, one in enumerate(model.net.parameters()):
                one.add_(0.02 * one.std() * tiny.noise(*one.shape, seed=number))
        model.net.save_pretrained(place / name)
        tiny.tokenizer().save_pretrained(place / name)
    return place


def traced(folder: Path, model: str, **more):
    given = {**SMALL, "text": folder / "text.jsonl", "trace": folder / "note.txt", **more}
    return stitch.evaluate(folder / model, **given)


@pytest.mark.numeric
def test_a_planted_memory_is_found_and_no_other(folder):
    found = traced(folder, "learned", against=folder / "never")
    row, null = found.rows.loc["model"], found.rows.loc["null:another document"]
    assert row.savings_low > 0 and "holds a trace of note.txt" in repr(found)
    assert null.savings_low <= 0 and null.savings < row.savings / 4
    none = traced(folder, "other", against=folder / "never")
    assert none.rows.loc["model"].savings_low <= 0 and repr(none).startswith("No trace of note.txt is found")
    assert none.rows.loc["model"].savings < row.savings / 4
    swapped = repr(traced(folder, "never", against=folder / "learned"))
    assert swapped.startswith(f"{folder / 'never'} is behind {folder / 'learned'} in learning note.txt")


def test_a_model_has_no_trace_against_itself(folder):
    found = traced(folder, "never", against=folder / "never")
    row = found.rows.loc["model"]
    assert row.savings == row.savings_low == row.savings_high == row.at_start == 0
    assert row.cost == found.rows.loc["against"].cost != 0


def test_the_report_has_curves_controls_and_a_null_and_the_model_is_not_changed(folder):
    before = (folder / "learned" / "model.safetensors").read_bytes()
    found = traced(folder, "learned")
    assert [row["name"] for row in found.report["results"]] == ["model", "controls, model", "null:another document"]
    assert all(len(row["curve"]) == 9 for row in found.report["results"])
    assert all(row["curve"][0] > row["curve"][8] for row in found.report["results"])
    assert found.report["controls"] == 10 and "own start" in repr(found)
    assert (folder / "learned" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--behaviour", "induction"], "--behaviour and --trace do not go together"),
        (["--dtype", "bf16"], "--dtype must be fp32 for a trace"),
        (["--controls", "3"], "--controls must be at least 10, for an interval; got 3."),
        (["--controls", "500"], "as long as the one to trace"),
        (["--rate", "0"], "--rate must be above 0"),
        (["--memory", "1K"], "--memory must be at least"),
        (["--trace", "none.txt"], "--trace must be a text file; there is no file none.txt"),
        (["--trace", "short.txt"], "--trace must have at least 8 tokens; short.txt has 5"),
    ],
)
def test_what_cannot_be_traced_is_refused_in_one_line(folder, more, message, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "short.txt").write_text("model")
    words = ["eval", "never", "--trace", "note.txt", "--text", "text.jsonl", "--tokens", "256", "--device", "cpu", "-q"]
    done = CliRunner().invoke(app, [*words, *more])
    assert done.exit_code == 2, done.output
    assert message in done.output and len(done.output.strip().splitlines()) == 1


def test_weights_and_their_gradients_are_restored_also_after_an_error():
    net = tiny.net("gpt2")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.requires_grad_(False)
    pieces = in_pieces(tiny.ids(1, 90)[0], tiny.BOS, 64)
    with pytest.raises(StitchError, match="lower it"), restored(net):
        learn(net, pieces, 1e30)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(one.requires_grad or one.grad is not None for one in net.parameters())


def test_a_document_in_pieces_has_the_gradient_and_loss_of_all_its_tokens():
    """One step of AdamW at a tiny rate follows the sign of the gradient, so pieces must add up to it."""
    net, ids = tiny.net("gpt2"), tiny.ids(1, 90)[0]
    pieces = in_pieces(ids, tiny.BOS, 64)
    assert [one.shape[1] for one in pieces] == [64, 28] and torch.equal(torch.cat([one[0, 1:] for one in pieces]), ids)
    nats = []
    with torch.no_grad():
        for one in pieces:
            found = net(one).logits[0, :-1].log_softmax(-1)
            nats.append(-found.gather(1, one[0, 1:, None])[:, 0])
    with restored(net):
        curve = learn(net, pieces, 1e-3, steps=3)
    assert float(curve[0]) == pytest.approx(float(torch.cat(nats).mean()), rel=1e-5)
    assert curve.tolist() == sorted(curve.tolist(), reverse=True) and area(curve) < 3 * float(curve[0])


def test_a_departure_holds_zero_for_documents_like_the_others():
    generator = torch.Generator().manual_seed(0)
    inside = 0
    for _ in range(2000):
        drawn = torch.randn(11, generator=generator, dtype=torch.float64)
        above, low, high = departure(float(drawn[0]), drawn[1:])
        assert low <= above <= high
        inside += low <= 0 <= high
    assert 0.93 < inside / 2000 < 0.97
    assert departure(5.0, torch.zeros(1))[1:] == (-float("inf"), float("inf"))
