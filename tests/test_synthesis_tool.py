"""An automaton inside a trained model: its states are correct at every token, and the model's predictions are
unchanged.
"""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import tiny
from jobs import write_text
from stitch.errors import UsageError
from stitch.synthesis.automata.read import from_description
from stitch.synthesis.tool.accuracy import accuracy
from stitch.synthesis.tool.report import compile_tool
from stitch.synthesis.tool.tool import states_along, steps_of_tokens, with_tool

# Two states each, because heads of a pico model copy eight numbers. Parity: whether a occurred an odd number of times.
# Flag: whether a was the last of a and b.
OUTPUTS = {"0": "0", "1": "1"}
ODD = {"0": {"a": "1", "b": "0"}, "1": {"a": "0", "b": "1"}}
SINCE = {"0": {"a": "1", "b": "0"}, "1": {"a": "1", "b": "0"}}
PARITY, FLAG = (from_description({"transitions": steps, "start": "0", "outputs": OUTPUTS}) for steps in (ODD, SINCE))


def host(**changes):
    return tiny.model("gpt2", **changes)


@pytest.mark.parametrize("automaton", [PARITY, FLAG], ids=["parity", "flag"])
@pytest.mark.parametrize("length, windows", [(64, 2), (128, 3)])
def test_states_are_correct_at_every_token_and_the_hosts_logits_are_unchanged(automaton, length, windows):
    model = host(n_positions=length)
    ids = tiny.ids(6, length)
    letters = torch.tensor(tiny.tokenizer().convert_tokens_to_ids(["a", "b"]))
    generator = torch.Generator().manual_seed(1)
    some = torch.rand(ids[:, 1:].shape, generator=generator) < 0.3
    ids[:, 1:][some] = letters[torch.randint(2, (int(some.sum()),), generator=generator)]
    tool = with_tool(model, automaton, ids, faint=1e-3)
    assert tool.windows == windows
    wanted = states_along(steps_of_tokens(automaton, model.tokenizer, tiny.VOCABULARY), ids, automaton.start)
    assert 0.2 < wanted.double().mean() < 0.8
    with torch.no_grad():
        lanes = tool.net.body(ids).last_hidden_state.double() @ tool.read.T
        assert torch.equal(lanes.argmax(-1), wanted)
        assert float(lanes.min(-1).values.abs().max()) < 0.01 * float(lanes.max(-1).values.min())  # one-hot up to 1 %
        assert torch.allclose(tool.net.net(ids).logits, model.net(ids).logits, atol=1e-3)


def test_a_special_token_in_the_middle_resets_the_state():
    model, ids = host(), tiny.ids(2, 30)
    a = tiny.tokenizer().convert_tokens_to_ids("a")
    ids[:, 9], ids[:, 10] = a, tiny.BOS
    ids[ids == a] = a + 1
    ids[:, 9] = a
    steps = steps_of_tokens(PARITY, model.tokenizer, tiny.VOCABULARY)
    states = states_along(steps, ids, 0)
    assert states[:, 9].tolist() == [1, 1] and states[:, 10:].sum() == 0
    tool = with_tool(model, PARITY, ids)
    with torch.no_grad():
        lanes = tool.net.body(ids).last_hidden_state.double() @ tool.read.T
    assert torch.equal(lanes.argmax(-1), states)


def test_tokens_of_several_characters_act_as_the_sequence_of_characters():
    class Tokenizer:
        all_special_ids = (0,)

        def decode(self, ids: list[int]) -> str:
            return ["<s>", "a", "aa", "xaxbaa", "x"][ids[0]]

    assert steps_of_tokens(PARITY, Tokenizer(), 5).tolist() == [[0, 0], [1, 0], [0, 1], [1, 0], [0, 1]]


def test_accuracy_is_counted_by_tokens_read_and_by_state():
    truth = torch.tensor([[0, 1, 1, 0], [0, 0, 1, 2]])
    predicted = torch.tensor([[0, 1, 0, 0], [0, 1, 0, 0]])
    document = torch.tensor([[4, 4, 4, 7], [7, 7, 9, 9]])
    row = accuracy("x", predicted.flatten(), truth, document, ["p", "q", "r"])
    assert row["right"] == 1 / 2
    assert [(one["part"], one["tokens"], one["right"]) for one in row["by_state"]] == [
        ("p", 4, 3 / 4), ("q", 3, 1 / 3), ("r", 1, 0.0),
    ]  # fmt: skip
    assert row["mean_over_states"] == pytest.approx((3 / 4 + 1 / 3) / 3)
    assert [(one["part"], one["tokens"], one["right"]) for one in row["by_tokens_read"]] == [
        ("1", 2, 1.0), ("2–3", 4, 1 / 4), ("4", 2, 1 / 2),
    ]  # fmt: skip
    alone = row["by_state"][2]  # one token, hence no interval
    assert alone["low"] is None and alone["high"] is None
    assert row["low"] < row["right"] < row["high"]


def test_unsupported_hosts_and_automata_are_refused():
    ids = tiny.ids(1, 8)
    with pytest.raises(UsageError, match=r"learned positions \(gpt2\); llama is llama"):
        with_tool(tiny.model("llama"), PARITY, ids)
    with pytest.raises(UsageError, match="the 2 blocks of gpt2 can compose 9 tokens; its context has 128"):
        with_tool(host(num_hidden_layers=2), PARITY, ids)
    thirds = {str(q): {"a": str((q + 1) % 3)} for q in range(3)}
    three = from_description({"transitions": thirds, "start": "0", "outputs": dict.fromkeys("012", "x")})
    with pytest.raises(UsageError, match="may have 2 states, as heads of gpt2 copy 8 numbers; it has 3"):
        with_tool(host(), three, ids)
    words = from_description({"transitions": {"0": {"ab": "0"}}, "start": "0", "outputs": {"0": "0"}})
    with pytest.raises(UsageError, match=r"reads characters.*'ab'"):
        with_tool(host(), words, ids)


def test_the_report_compares_with_a_probe_and_the_checkpoint_is_stock(tmp_path):
    folder = tiny.save(tmp_path / "host", "gpt2")
    spec = tmp_path / "parity.json"
    odd = {"0": {"e": "1"}, "1": {"e": "0"}}
    spec.write_text(json.dumps({"transitions": odd, "start": "0", "outputs": OUTPUTS}))
    report = compile_tool(
        str(spec),
        str(folder),
        tmp_path / "tool",
        text=str(write_text(tmp_path)),
        tokens=2_000,
        faint=0.05,
        device="cpu",
    )
    rows = {row["name"].partition(", site")[0]: row for row in report["right"]}
    assert rows["tool, fp32"]["right"] == 1.0
    assert rows["probe on the host's stream"]["right"] < 0.95
    assert rows["the most frequent state"]["mean_over_states"] == pytest.approx(0.5)
    assert rows["tool, bf16"]["right"] == 1.0
    assert abs(report["price"]["nats"]) < 2e-3
    net = AutoModelForCausalLM.from_pretrained(tmp_path / "tool")
    assert type(net).__name__ == "GPT2LMHeadModel"
    read = load_file(tmp_path / "tool" / "readout.safetensors")["states"]
    assert read.shape == (2, net.config.n_embd)
    assert json.loads((tmp_path / "tool" / "tool.json").read_text())["price"] == report["price"]
    page = (tmp_path / "tool" / "report.html").read_text()
    assert "the most frequent state" in page and f"{report['parameters']['after']:,}" in page
