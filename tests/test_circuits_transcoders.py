"""Features instead of neurons: SAELens computes the same, planted features are found, and hosts receive them as
pairs of neurons.
"""

import json
from pathlib import Path
from typing import Literal

import pytest
import torch
from sae_lens import SAE
from transformers import GPT2Config, GPT2LMHeadModel
from typer.testing import CliRunner

import cli
import tiny
from sae.types import Dictionary
from stitch.circuits.circuit_file import read_circuit
from stitch.circuits.find import find_circuit
from stitch.circuits.report import footnotes
from stitch.errors import UsageError
from stitch.grafts import neurons
from stitch.grafts.graft import graft
from stitch.grafts.request import GraftRequest
from stitch.internals.forward import neuron_outputs
from stitch.internals.transcoders import FeatureMlp, as_trained, feature_blocks, put_features
from stitch.internals.weights import activation, norm
from stitch.models.loading import load
from stitch.models.model import Model

LETTERS = "ABCDEFGH"  # prompts: each letter is followed by its lower-case letter
WIDTH, DECOYS = 2 * tiny.VOCABULARY, 24


def saved(
    folder: Path, architecture: str, d_in: int, features: int, seed: int = 0, hook: str | None = None, **changes
) -> Path:
    """A random transcoder of SAELens; `changes` replace weights."""
    kind = {"d_in": d_in, "d_sae": features, "apply_b_dec_to_input": "transcoder" not in architecture}
    if "transcoder" in architecture:
        kind["d_out"] = changes.pop("d_out", d_in)
    if architecture == "topk":
        kind["k"] = 4
    found = SAE.from_dict({"architecture": architecture, "metadata": {"hook_name": hook}, **kind})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in found.named_parameters():
            value.copy_(changes[name] if name in changes else 0.3 * torch.randn(value.shape, generator=generator))
            if name == "threshold" and name not in changes:
                value.abs_()
            if name == "W_dec" and architecture == "topk":
                value.div_(value.norm(dim=1, keepdim=True))  # otherwise it would select by other numbers than it writes
    found.save_model(folder)
    return folder


def planted(folder: Path) -> tuple[Path, Path, Path]:
    """A GPT-2 without the behaviour, a transcoder that has it (a letter's feature writes the code of the lower-case
    letter), and prompts.

    Decoys write noise at every token.
    """
    config = GPT2Config(
        vocab_size=tiny.VOCABULARY, n_embd=WIDTH, n_head=4, n_layer=2, n_positions=32, n_inner=16,
        bos_token_id=tiny.BOS, eos_token_id=tiny.BOS, pad_token_id=tiny.PAD,
    )  # fmt: skip
    torch.manual_seed(0)
    net = GPT2LMHeadModel(config)
    with torch.no_grad():
        for value in net.parameters():
            if value.ndim == 2:
                value.copy_(0.002 * torch.randn_like(value))
        net.transformer.wte.weight.copy_(torch.eye(tiny.VOCABULARY, WIDTH))
    net.save_pretrained(folder / "donor")
    tokenizer = tiny.tokenizer()
    tokenizer.save_pretrained(folder / "donor")
    pairs = [(tokenizer.encode(one)[-1], tokenizer.encode(one.lower())[-1]) for one in LETTERS]
    encoder, decoder = torch.zeros(WIDTH, len(pairs) + DECOYS), torch.zeros(len(pairs) + DECOYS, WIDTH)
    for number, (letter, small) in enumerate(pairs):
        encoder[letter, number], decoder[number, small] = 1.0, 0.2
    bias = torch.cat([torch.zeros(len(pairs)), torch.ones(DECOYS)])
    decoder[len(pairs) :] = 0.01 * torch.randn(DECOYS, WIDTH)
    transcoder = saved(
        folder / "transcoder", "jumprelu_transcoder", WIDTH, len(bias), hook="blocks.0.ln2.hook_normalized",
        W_enc=encoder, W_dec=decoder, b_enc=bias, b_dec=torch.zeros(WIDTH), threshold=torch.where(bias > 0, 0.0, 5.0),
    )  # fmt: skip
    lines = [
        {"clean": f"{before}{one}", "corrupt": f"{before}{other}", "answer": one.lower()}
        for before in "xyz"
        for one, other in zip(LETTERS, "IJKLMNOP", strict=True)
        for _ in range(2)  # one prompt for choosing, one for reporting
    ]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder / "donor", transcoder, folder / "prompts.jsonl"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Path, Path]:
    return planted(tmp_path_factory.mktemp("planted"))


def inner(model: Model, block: int, x: torch.Tensor) -> torch.Tensor:
    return model.blocks[block].get_submodule(model.anatomy.mlp)(x)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
@pytest.mark.parametrize("architecture", ["transcoder", "jumprelu_transcoder", "standard", "jumprelu", "topk"])
def test_a_block_with_features_computes_what_saelens_does(family: str, architecture: str, tmp_path: Path):
    """With a transcoder of the MLP's input, with an SAE of its output, and with the original MLP inside
    `as_trained`.
    """
    model = tiny.model(family)
    own = model.blocks[2].get_submodule(model.anatomy.mlp)
    folder = saved(tmp_path / "sae", architecture, model.width, 96)
    put_features(model, {2: str(folder)})
    x, theirs = torch.randn(3, 5, model.width), SAE.load_from_disk(folder)
    with torch.no_grad():
        wanted = theirs(x if "transcoder" in architecture else own(x))
        torch.testing.assert_close(inner(model, 2, x), wanted, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(wanted, own(x), atol=1e-2)
        with as_trained(model):
            assert torch.equal(inner(model, 2, x), own(x))
        torch.testing.assert_close(inner(model, 2, x), wanted, rtol=1e-5, atol=1e-5)
    assert list(feature_blocks(model)) == [2]


@pytest.mark.parametrize("k", [8, 96])
def test_as_many_features_are_active_as_the_dictionary_says(k: int):
    """Also where it has no more, and where many are equal, as in bf16."""
    zeros = torch.zeros(96), torch.zeros(12)
    dictionary = Dictionary(torch.randn(12, 96), zeros[0] + 9.0, "topk", None, k, torch.randn(96, 12), zeros[1])
    features = FeatureMlp(dictionary, torch.nn.Identity(), "out", reads_output=False).to(torch.bfloat16)
    x = torch.randn(50, 12).bfloat16()
    assert torch.equal((features.codes(x) > 0).sum(-1), (features.encoder(x) > 0).sum(-1).clamp_max(k))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_neurons_of_a_circuit_are_the_features(family: str, tmp_path: Path):
    model = tiny.model(family)
    folder = saved(tmp_path / "sae", "jumprelu_transcoder", model.width, 96)
    put_features(model, {1: str(folder)})
    x, of = torch.randn(2, 4, model.width), norm(model, "mlp", 1)
    read = x * of.gain if of.bias is None else x * of.gain + of.bias
    with torch.no_grad():
        theirs = SAE.load_from_disk(folder)
        wanted = theirs.encode(read) * theirs.W_dec.norm(dim=1)  # here decoder rows have unit norm
        torch.testing.assert_close(neuron_outputs(model, 1, x), wanted, rtol=1e-5, atol=1e-5)
    assert (activation(model, 1), activation(model, 0)) == ("jumprelu", "gelu" if family == "gpt2" else "silu")


def test_planted_features_are_found_and_carry_the_behaviour(made: tuple[Path, Path, Path], tmp_path: Path):
    donor, transcoder, prompts = made
    place = tmp_path / "graph.json"
    report = find_circuit(str(donor), str(prompts), features={0: str(transcoder)}, keep=1.0, graph=place)
    right = {row["name"]: row["right"] for row in report["results"]}
    assert report["circuit"] == {"heads": {}, "neurons": {"0": list(range(len(LETTERS)))}}
    assert report["features"] == {"0": str(transcoder)}
    assert right["model"] == 0 and right["features for neurons"] == 1 and right["circuit alone"] == 1
    assert right["without it"] == 0 and right["corrupt prompts"] == 0
    assert footnotes(report)[0] == "Circuit: 0 of 8 heads, 8 of 48 neurons (of blocks 0, features)."
    nodes = [node for node in json.loads(place.read_text(encoding="utf-8"))["nodes"] if node["influence"] is not None]
    assert nodes and all(node["clerp"].startswith("feature 0.") for node in nodes)


@pytest.mark.parametrize(("gated", "act"), [(False, "gelu"), (True, "silu")])
def test_a_feature_becomes_two_neurons_that_differ_from_it_only_near_its_threshold(
    gated: bool, act: Literal["gelu", "silu"]
):
    threshold = torch.tensor([0.5, 2.0, 0.0], dtype=torch.float64)
    eye, nothing = torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    features = neurons.Neurons(None, None, eye, nothing, eye, nothing, threshold)
    rows = torch.linspace(-6, 6, 601, dtype=torch.float64)[:, None].expand(-1, 3)
    made = neurons.stepped(features, rows, gated=gated)
    wanted, found = neurons.written(features, rows, "jumprelu"), neurons.written(made, rows, act)
    assert len(made) == 6
    usual = (wanted.square().sum(0) / (wanted > 0).sum(0)).sqrt()
    near = (rows - threshold).abs() < 0.2 * usual
    assert float((wanted - found)[~near].abs().max()) < 0.02
    assert float((wanted - found)[near].abs().max()) > 0.05  # here the step is smoothed
    # Without a threshold, one neuron is enough.
    plain = neurons.stepped(neurons.Neurons(None, None, eye, nothing, eye, nothing, nothing), rows, gated=gated)
    assert len(plain) == 3 and float((neurons.written(plain, rows, act) - rows.relu()).abs().max()) < 0.05


HOSTS = {
    "llama": dict(
        hidden_size=320, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32, max_position_embeddings=32
    ),
    "gpt2": dict(n_embd=320, n_layer=2, n_head=4, n_inner=32, n_positions=32),
}


@pytest.mark.parametrize("family", HOSTS)
def test_features_are_grafted_into_fresh_hosts(made: tuple[Path, Path, Path], family: str, tmp_path: Path):
    donor, transcoder, prompts = made
    host = tmp_path / "host.json"
    host.write_text(json.dumps({"model_type": family, **HOSTS[family]}))
    report = graft(
        [GraftRequest(str(donor), str(prompts), features={0: str(transcoder)})], str(host), tmp_path / "out", keep=1.0
    )["grafts"][0]
    right = {row["name"]: row["right"] for row in report["results"]}
    (placed,) = report["plan"]["neurons"]
    assert (placed["count"], placed["as"], placed["kind"]) == (8, 16, "features, by steps") and placed["lost"] < 1e-3
    assert right["donor"] == 0 and right["features for neurons"] == 1
    assert right["host, grafted"] == 1 and right["host without the graft"] == right["without block 0"] == 0
    kl = {row["name"]: row["kl"] for row in report["results"] if "kl" in row}
    assert kl["its circuit alone"] == 0 and max(kl["features for neurons"], kl["host, grafted"]) < 0.01
    assert min(kl[name] for name in ("donor", "host without the graft", "without block 0")) > 1


def test_features_are_grafted_into_a_trained_host(made: tuple[Path, Path, Path], tmp_path: Path):
    """The host gets as many new neurons as the features take."""
    donor, transcoder, prompts = made
    text = tmp_path / "text"
    text.mkdir()
    for number in range(60):
        (text / f"{number}.txt").write_text(f"{number} and {number * 7} make {number * 8}. " * 10)
    request = GraftRequest(str(donor), str(prompts), features={0: str(transcoder)})
    report = graft([request], str(donor), tmp_path / "out", keep=1.0, text=str(text), tokens=256)
    right = {row["name"]: row["right"] for row in report["grafts"][0]["results"]}
    assert right["host, grafted"] == 1 and right["host without the graft"] == 0


def test_dictionaries_that_cannot_replace_neurons_are_refused(made: tuple[Path, Path, Path], tmp_path: Path):
    model, width = tiny.model("gpt2"), tiny.model("gpt2").width

    def refused(message: str, folder: Path, block: int = 0) -> None:
        with pytest.raises(UsageError, match=message):
            put_features(model, {block: str(folder)})

    fine = saved(tmp_path / "fine", "transcoder", width, 64)
    refused("features must be for blocks 0 to 5 of .*; got block 6", fine, 6)
    refused(
        "reads blocks.0.hook_resid_post: choose another",
        saved(tmp_path / "a", "standard", width, 64, hook="blocks.0.hook_resid_post"),
    )
    refused(
        "reads blocks.0.hook_mlp_in: choose another",
        saved(tmp_path / "b", "transcoder", width, 64, hook="blocks.0.hook_mlp_in"),
    )
    refused("without a skip connection; got 'skip_transcoder'", saved(tmp_path / "d", "skip_transcoder", width, 64))
    refused("of width 32; .* reads 40", saved(tmp_path / "e", "transcoder", 40, 64))
    refused("must have the same width; got 32 and 24", saved(tmp_path / "f", "transcoder", width, 64, d_out=24))
    refused("no folder", tmp_path / "nothing")
    assert not feature_blocks(model)
    donor, _, prompts = made
    behind = {0: str(saved(tmp_path / "g", "standard", WIDTH, 300, hook="blocks.0.hook_mlp_out"))}
    host = tmp_path / "host.json"
    host.write_text(json.dumps({"model_type": "gpt2", **HOSTS["gpt2"]}))
    with pytest.raises(UsageError, match="must be those of a transcoder without top-k; those of block 0 are of an SAE"):
        graft([GraftRequest(str(donor), str(prompts), features=behind)], str(host), None)


def test_a_circuit_of_features_can_only_be_used_with_its_features(made: tuple[Path, Path, Path], tmp_path: Path):
    donor, transcoder, prompts = made
    arguments = ["circuit", str(donor), "--behaviour", str(prompts), "--keep", "1", "-q"]
    out, features = tmp_path / "circuit.json", ["--features", f"0={transcoder}"]
    shown = CliRunner().invoke(cli.app, [*arguments, *features, "--out", str(out)])
    assert shown.exit_code == 0 and "features for neurons" in shown.output
    model = load(donor)
    with pytest.raises(UsageError, match=r"has features in blocks 0; .* in none: give the same `features`"):
        read_circuit(out, model)
    put_features(model, {0: str(transcoder)})
    assert int(read_circuit(out, model).masks["neurons", 0].sum()) == len(LETTERS)
    again = CliRunner().invoke(cli.app, [*arguments, *features, "--circuit", str(out)])
    assert again.exit_code == 0 and "8 of 48 neurons" in again.output
    wrong = CliRunner().invoke(cli.app, [*arguments, "--features", f"zero={transcoder}"])
    assert wrong.exit_code == 2 and "--features must be BLOCK=SAE, once per block" in wrong.stderr
