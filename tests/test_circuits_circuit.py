"""A head planted by hand in a GPT-2 of noise: attribution ranks it first, and the circuit keeps almost nothing else."""

import json
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from typer.testing import CliRunner

import cli
import stitch
import tiny
from stitch.circuits.attribution import attribute
from stitch.circuits.behaviours.named import make_prompts
from stitch.circuits.circuit_file import read_circuit
from stitch.circuits.components import Components, places, replaced, watched
from stitch.circuits.find import find_circuit, mean_outputs
from stitch.circuits.report import footnotes, to_json
from stitch.errors import StitchError, UsageError
from stitch.models.loading import load

CODE, HEAD = 64, 1  # width of a token's code and of the one-hot positions; the planted head, in block 1


def planted(folder: Path, gain: float = 3.0) -> Path:
    """A head that attends to the previous token and writes `gain` times its code at the current one."""
    config = GPT2Config(
        vocab_size=tiny.VOCABULARY, n_embd=2 * CODE, n_head=2, n_layer=2, n_positions=CODE, bos_token_id=tiny.BOS,
        eos_token_id=tiny.BOS, pad_token_id=tiny.PAD,
    )  # fmt: skip
    torch.manual_seed(0)
    net = GPT2LMHeadModel(config)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.ndim == 2:
                parameter.copy_(0.003 * torch.randn_like(parameter))
            elif "bias" in name:
                parameter.zero_()
        net.transformer.wte.weight.zero_()
        net.transformer.wte.weight[:, :CODE] = torch.randn(tiny.VOCABULARY, CODE)
        net.transformer.wpe.weight.zero_()
        net.transformer.wpe.weight[:, CODE:] = 8 * torch.eye(CODE)
        attention = net.transformer.h[1].attn
        query, key, value = attention.c_attn.weight.view(2 * CODE, 3, 2, CODE)[:, :, HEAD].unbind(1)
        for part in (query, key, value):
            part.zero_()
        query[CODE + 1 :, : CODE - 1] = 20 * torch.eye(CODE - 1)  # position p looks for p − 1
        key[CODE:] = 20 * torch.eye(CODE)
        value[:CODE] = torch.eye(CODE)
        attention.c_proj.weight[HEAD * CODE :].zero_()
        attention.c_proj.weight[HEAD * CODE :, :CODE] = gain * torch.eye(CODE)
    net.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def donor(tmp_path_factory) -> Path:
    return planted(tmp_path_factory.mktemp("donor") / "planted")


def test_the_planted_head_is_found_and_carries_the_behaviour(donor: Path):
    report = find_circuit(str(donor), "previous-token", count=32)
    right = {row["name"]: row["right"] for row in report["results"]}
    assert report["circuit"]["heads"] == {"1": [HEAD]} and report["size"]["neurons"]["kept"] == 0
    assert right["model"] > 0.95 and right["circuit alone"] >= 0.9 * right["model"]
    assert right["without it"] < 0.1 and right["corrupt prompts"] < 0.1
    assert min(right[f"without random circuit {number}"] for number in (1, 2, 3)) in (
        right["model"],
        right["without it"],
    )
    assert report["stability"] == 1.0
    assert footnotes(report)[0] == "Circuit: 1 of 4 heads (1.1), 0 of 1,024 neurons."


@pytest.mark.numeric
def test_attribution_approximates_the_effect_of_patching_in_the_corrupt_output(donor: Path):
    """One component decides everything, so the integral over the path is the whole difference."""
    model = load(donor)
    of = make_prompts("previous-token", model.tokenizer, count=8)
    scores = attribute(model, of, steps=30)
    planted_score = float(scores["heads", 1][HEAD])
    others = sum(float(values.abs().sum()) for values in scores.values()) - abs(planted_score)
    assert others < 0.1 * planted_score
    with torch.no_grad(), watched(model) as seen:
        model.net(of.corrupt)
        corrupt = dict(seen)
    kept = Components({place: torch.ones_like(values, dtype=torch.bool) for place, values in scores.items()})
    kept.masks["heads", 1][HEAD] = False

    def nats() -> float:
        with torch.no_grad():
            answers = model.net(of.clean).logits.log_softmax(-1).gather(2, of.answers[..., None])[..., 0]
        return float(answers[of.asked].mean())

    whole = nats()
    with replaced(model, kept, corrupt):
        without = nats()
    # One is a first-order estimate along the path between embeddings, the other a finite difference at its end. They
    # have the same magnitude but are not equal.
    assert planted_score == pytest.approx(whole - without, rel=0.5)


@pytest.mark.numeric
@pytest.mark.parametrize("family", tiny.FAMILIES)
@torch.no_grad()
def test_heads_and_neurons_are_located_in_every_family(family: str):
    """Ablating components equals setting the matching rows of the output projections to zero."""
    model, ids = tiny.model(family), tiny.ids()
    with watched(model) as seen:
        whole = model.net(ids).logits
        zeros = {place: torch.zeros_like(output) for place, output in seen.items()}
    kept = Components({place: ~mask for place, mask in Components.none(model).masks.items()})
    with replaced(model, kept, zeros):
        assert torch.equal(model.net(ids).logits, whole)
    kept.masks["heads", 2][1], kept.masks["neurons", 3][5] = False, False
    with replaced(model, kept, zeros):
        found = model.net(ids).logits
    assert (found - whole).abs().max() > 1e-3
    heads, down = model.heads_out(2), model.down(3)
    size = seen["heads", 2].shape[-1] // model.heads(2)
    for projection, rows in ((heads, slice(size, 2 * size)), (down, slice(5, 6))):
        weight = projection.weight if family == "gpt2" else projection.weight.T
        weight[rows] = 0
    torch.testing.assert_close(model.net(ids).logits, found, atol=1e-4, rtol=1e-4)


@pytest.mark.numeric
def test_means_are_those_of_the_corrupt_prompts(donor: Path):
    model = load(donor)
    of = make_prompts("previous-token", model.tokenizer, count=40)
    with torch.no_grad(), watched(model) as seen:
        model.net(of.corrupt)
    means = mean_outputs(model, of)
    for place in places(model):
        torch.testing.assert_close(means[place][0], seen[place].mean(0), atol=1e-5, rtol=1e-4)


@pytest.mark.numeric
def test_an_edited_circuit_file_is_scored(donor: Path, tmp_path: Path):
    report = find_circuit(str(donor), "previous-token", count=8)
    assert '"1": [1]' in to_json(report) and json.loads(to_json(report)) == report
    for name, circuit in (
        ("same", report),
        ("empty", {"heads": {}}),
        ("other", {"heads": {"1": [0]}, "neurons": {"0": [3, 4]}}),
    ):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(circuit))
        again = find_circuit(str(donor), "previous-token", count=8, circuit=path)
        rows = {row["name"]: row["right"] for row in again["results"]}
        assert (rows["circuit alone"] > 0.9) == (name == "same")
        assert again["stability"] is None
        if name == "same":
            assert again["results"] == report["results"]


def test_the_command_shows_the_table_and_writes_the_file(donor: Path, tmp_path: Path):
    command = [
        "circuit",
        str(donor),
        "--behaviour",
        "previous-token",
        "--prompts",
        "8",
        "-q",
        "--out",
        str(tmp_path / "found.json"),
    ]
    done = CliRunner().invoke(cli.app, command)
    assert done.exit_code == 0, done.stderr
    report = json.loads((tmp_path / "found.json").read_text())
    assert report == find_circuit(str(donor), "previous-token", count=8)
    assert all(row["name"] in done.stdout for row in report["results"])
    assert footnotes(report)[0] in done.stdout
    again = CliRunner().invoke(cli.app, [*command[:-2], "--circuit", str(tmp_path / "found.json"), "--json"])
    assert json.loads(again.stdout)["results"] == report["results"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", "must be JSON; line 1, column 1"),
        ("[1]", "it must be an object with heads, neurons"),
        ("{}", "must name components such as"),
        ('{"circuit": {}}', "must name components such as"),
        ('{"circuit": {"heads": {}}, "grafts": 3}', "grafts of .* it must be a list, got 3"),
        ('{"head": {"1": [0]}}', r"has 'head' \(did you mean heads\?\)"),
        (
            '{"heads": {"1": [0, -1], "x": []}, "neurons": []}',
            "heads.'1'.* at least 0, got -1;.*'x'.*; neurons must be an object",
        ),
        ('{"heads": {"2": [0]}}', r"names block 2, which planted does not have; it has 2: edit it"),
        ('{"heads": {"1": 0}}', "must be a list, got 0"),
        ('{"neurons": {"0": [512]}}', r"neurons \[512\] of block 0"),
    ],
)
def test_unusable_circuits_are_refused(text: str, message: str, donor: Path, tmp_path: Path):
    (tmp_path / "circuit.json").write_text(text)
    with pytest.raises(UsageError, match=message):
        read_circuit(tmp_path / "circuit.json", load(donor, name="planted"))


def test_prompts_of_a_file_are_split_into_choosing_and_reporting(donor: Path, tmp_path: Path):
    """Every other line asks for something that the planted head does not do, which shows only in the reported half."""
    right = {"clean": "abcdb", "corrupt": "efghi", "answer": "d"}
    wrong = {**right, "answer": "z"}
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps(right) for _ in range(8)))
    assert find_circuit(str(donor), str(path))["prompts"] == 4
    path.write_text("\n".join(json.dumps(line) for line in (right, wrong) * 4))
    with pytest.raises(StitchError, match=r"it answers 0\.0% of clean prompts"):
        find_circuit(str(donor), str(path))
    path.write_text(json.dumps(right))
    with pytest.raises(UsageError, match="at least 2 prompts, to choose on and to report on"):
        find_circuit(str(donor), str(path))


def test_prompts_longer_than_the_context_are_refused_in_one_line(donor: Path, tmp_path: Path):
    path = tmp_path / "prompts.jsonl"
    path.write_text((json.dumps({"clean": "ab" * 200, "corrupt": "cd" * 200, "answer": "a"}) + "\n") * 4)
    for call in (stitch.circuit, stitch.evaluate):
        with pytest.raises(UsageError, match=r"needs a context of 401 tokens; .* takes 64: choose another model"):
            call(str(donor), behaviour=str(path), quiet=True, device="cpu")


def test_a_model_without_the_behaviour_is_refused(donor: Path):
    with pytest.raises(StitchError, match=r"must have the behaviour .* it answers \d\.\d% of clean prompts"):
        find_circuit(str(donor), "duplicate-token", count=16)
    with pytest.raises(UsageError, match="keep must be a share"):
        find_circuit(str(donor), "previous-token", keep=0.0)
