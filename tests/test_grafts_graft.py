"""A planted circuit in freshly initialised hosts: they have the behaviour before any training, and the controls do
not.
"""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import cli
import planted
import tiny
from graph_format import check_format
from stitch.circuits.behaviours.prompts import Prompts
from stitch.circuits.components import Components, replaced
from stitch.circuits.find import choose_circuit, mean_outputs
from stitch.circuits.score import score_model
from stitch.errors import StitchError, UsageError
from stitch.grafts.allocation import FreeSpace
from stitch.grafts.compared import reversed_blocks
from stitch.grafts.fresh_host import read_host
from stitch.grafts.graft import _can_be_set_apart, graft
from stitch.grafts.hosts import widened
from stitch.grafts.norm_inputs import input_lengths
from stitch.grafts.plan import Plan, make_plan
from stitch.grafts.report import result_notes, result_tables
from stitch.grafts.request import GraftRequest
from stitch.grafts.write import write
from stitch.internals import weights
from stitch.internals.weights import FAMILIES, ONE_KEY_HEAD
from stitch.models.loading import load
from stitch.synthesis.compile import compile_induction

LLAMA = dict(
    model_type="llama", hidden_size=320, num_hidden_layers=4, num_attention_heads=5, num_key_value_heads=5, intermediate_size=64,
    max_position_embeddings=128, attention_bias=True, mlp_bias=True,
)  # fmt: skip
NO_BIASES = {name: value for name, value in LLAMA.items() if not name.endswith("_bias")}  # settings of Llamas only
GPT2 = dict(model_type="gpt2", n_embd=400, n_layer=4, n_head=5, n_positions=planted.POSITIONS, n_inner=64)
# Prompts fit into the host, so that they are short as well.
SHORT = {"num_hidden_layers": 3, "max_position_embeddings": 48}
CIRCUIT = {"heads": {"0": [1], "1": [2]}, "neurons": {}}


def config(folder: Path, base: dict, **changes) -> Path:
    path = folder / "host.json"
    path.write_text(json.dumps({**base, **changes}))
    return path


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> Path:
    return planted.induction(tmp_path_factory.mktemp("donor") / "gpt2")


@pytest.fixture(scope="module")
def circuit(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("circuit") / "circuit.json"
    path.write_text(json.dumps(CIRCUIT))
    return path


@pytest.fixture(scope="module")
def llama(gpt2: Path, tmp_path_factory) -> Path:
    """A fresh Llama with the circuit, as a stock checkpoint."""
    folder = tmp_path_factory.mktemp("grafted")
    graft([GraftRequest(str(gpt2), "induction")], str(config(folder, LLAMA)), folder / "llama", count=20)
    return folder / "llama"


def right(report: dict, number: int = 0) -> dict[str, float]:
    return {row["name"]: row["right"] for row in report["grafts"][number]["results"]}


def controls(rows: dict[str, float]) -> list[float]:
    """What the five controls have; the circuit's first block in the host is 1 where positions are written before it."""
    names = ("host without the graft", "noise of the same norm", "blocks in opposite order")
    found = [value for name, value in rows.items() if name in names or name.startswith("without block")]
    assert len(found) == 5
    return found


def test_a_fresh_llama_has_the_behaviour_before_any_training_and_no_control_has(llama: Path):
    report = json.loads((llama / "graft.json").read_text())
    assert report["grafts"][0]["circuit"] == CIRCUIT  # the circuit is searched for, not given
    scores = right(report)
    assert scores["donor"] > 0.99 and scores["host, grafted"] >= 0.97 * scores["donor"]
    assert max(controls(scores)) < 0.05 and scores["host on corrupt prompts"] < 0.02
    kl = {row["name"]: row["kl"] for row in report["grafts"][0]["results"] if "kl" in row}
    assert kl["its circuit alone"] == 0 and kl["host, grafted"] < 0.5
    assert min(controls(kl)) > 4
    heads = report["grafts"][0]["plan"]["heads"]
    assert [head["kind"] for head in heads] == ["1 back", "content, distance"]
    assert heads[0]["back"][1] > 0.95


def test_the_behaviour_is_scored_by_distance_beside_a_null(llama: Path):
    report = json.loads((llama / "graft.json").read_text())
    rows = {row["name"]: row for row in report["grafts"][0]["results"]}
    assert min(one["right"] for one in rows["host, grafted"]["distances"]) > 0.9
    assert max(one["right"] for one in rows["noise of the same norm"]["distances"]) < 0.1
    _, (header, cells, title) = result_tables(report)
    assert header[:2] == ["tokens back", "prompts"] and {"donor", "host, grafted", "noise of the same norm"} < set(
        header
    )
    assert [row[0] for row in cells] == ["8 – 15", "16 – 31", "32 – 63"] and title.endswith("right answers by distance")
    assert sum(int(row[1]) for row in cells) == report["grafts"][0]["prompts"]
    note = next(line for line in result_notes(report) if line.startswith("Right beyond corrupt prompts: donor "))
    assert f"host, grafted {rows['host, grafted']['beyond']:.1%} (" in note


def test_a_circuit_is_chosen_on_prompts_that_fit_into_the_host(gpt2: Path, tmp_path: Path):
    report = graft(
        [GraftRequest(str(gpt2), "induction")], str(config(tmp_path, LLAMA, max_position_embeddings=48)), None, count=8
    )
    assert report["grafts"][0]["circuit"] == CIRCUIT


def test_the_graph_is_that_of_the_heads_in_the_host(llama: Path):
    graph = json.loads((llama / "graph.json").read_text(encoding="utf-8"))
    check_format(graph)
    assert graph["metadata"]["scan"] == "host" and graph["metadata"]["slug"] == "host-induction"
    heads = json.loads((llama / "graft.json").read_text())["grafts"][0]["plan"]["heads"]
    labels = {
        f"head {head['host'][0]}.{head['host'][1]} (donor's {head['donor'][0]}.{head['donor'][1]})" for head in heads
    }
    nodes = {node["node_id"]: node for node in graph["nodes"]}
    assert {node["clerp"] for node in nodes.values() if node["feature_type"] == "attention head"} == labels
    assert not [node for node in nodes.values() if node["feature_type"] == "mlp neuron"]  # the circuit has none
    # Its last head is what the host answers by.
    into = [link for link in graph["links"] if nodes[link["target"]]["feature_type"] == "logit"]
    assert {nodes[link["source"]]["clerp"] for link in into} == {max(labels)}
    model = load(llama)
    assert graph["metadata"]["prompt_tokens"][0] == model.tokenizer.decode([model.bos])
    settings = graph["metadata"]["generation_settings"]
    assert settings["difference"] > 5  # the graph is of the host after the graft; before, it does not know the answers


def test_the_host_is_a_stock_checkpoint(llama: Path):
    net = AutoModelForCausalLM.from_pretrained(llama)
    assert type(net).__name__ == "LlamaForCausalLM" and not list(llama.glob("*.py"))
    assert not net.config.tie_word_embeddings
    tokenizer = AutoTokenizer.from_pretrained(llama)
    text = "qwertyuiopasdfgh"
    ids = tokenizer(text + "!" + text[:6], return_tensors="pt").input_ids
    out = net.generate(ids, max_new_tokens=8, do_sample=False, attention_mask=torch.ones_like(ids))
    assert tokenizer.decode(out[0, ids.shape[1] :]) == text[6:14]
    clean, corrupt = score_model(str(llama), "induction", count=16)["results"]
    assert clean["right"] > 0.97 and corrupt["right"] < 0.02


@pytest.mark.parametrize(
    ("base", "changes", "count"),
    [
        pytest.param(
            LLAMA | SHORT, {"attention_bias": False, "mlp_bias": False}, 6, id="no biases", marks=pytest.mark.slow
        ),
        pytest.param(
            LLAMA | SHORT, {"num_attention_heads": 10, "num_key_value_heads": 5, "head_dim": 64}, 6, id="grouped heads"
        ),
        pytest.param(
            LLAMA | SHORT,
            {"hidden_size": 192, "num_attention_heads": 3, "num_key_value_heads": 3},
            6,
            id="narrower",
            marks=pytest.mark.slow,
        ),
        # Some of its answers are wrong, so more prompts are needed to compare it with 0.97 of the donor's.
        pytest.param(GPT2, {"n_embd": 160}, 12, id="narrower GPT-2, smaller heads"),
        pytest.param({**NO_BIASES, **SHORT, "model_type": "qwen2"}, {}, 6, id="Qwen2", marks=pytest.mark.slow),
    ],
)
def test_hosts_of_other_shapes(gpt2: Path, tmp_path: Path, base: dict, changes: dict, count: int):
    """The circuit has a noise head first in each block, so that its heads do not take their default places in the
    host.
    """
    circuit = tmp_path / "circuit.json"
    circuit.write_text(json.dumps({"heads": {"0": [0, 1], "1": [1, 2]}, "neurons": {}}))
    report = graft(
        [GraftRequest(str(gpt2), "induction", circuit)],
        str(config(tmp_path, base, **changes)),
        tmp_path / "host",
        count=count,
    )
    scores, plan = right(report), report["grafts"][0]["plan"]
    assert scores["host, grafted"] >= 0.97 * scores["donor"]
    assert max(controls(scores)) < 0.05
    shared = changes.get("num_attention_heads", 1) // changes.get("num_key_value_heads", 1)
    assert all(head["host"][1] % shared == 0 for head in plan["heads"])
    wide = changes.get("hidden_size", changes.get("n_embd", 400)) > 208
    assert (plan["channels"] >= 208) == wide and (plan["stream_kept"] == 1 or not wide)


@pytest.mark.slow
def test_from_rope_to_learned_positions(llama: Path, tmp_path: Path):
    report = graft([GraftRequest(str(llama), "induction")], str(config(tmp_path, GPT2)), tmp_path / "gpt2", count=16)
    scores = right(report)
    assert scores["host, grafted"] >= 0.97 * scores["donor"] and max(controls(scores)) < 0.05
    assert [head["kind"] for head in report["grafts"][0]["plan"]["heads"]] == ["1 back", "content, distance"]


@pytest.mark.parametrize("source", ["gpt2", pytest.param("llama", marks=pytest.mark.slow)])
def test_with_equal_position_schemes_logits_are_those_of_the_circuit_alone(source: str, request, tmp_path: Path):
    """Width, depth, number and size of heads differ, and all of the donor's channels are used: exact up to rounding."""
    donor = load(request.getfixturevalue(source), dtype=torch.float64)
    base = GPT2 if source == "gpt2" else LLAMA | {"hidden_size": 400, "head_dim": 64}
    host = read_host(config(tmp_path, base), donor, seed=3)
    host.net.double()
    chosen = choose_circuit(donor, "induction", count=16, constant=True)
    plan = make_plan(donor, "induction", chosen.kept, chosen.means, chosen.first, host, FreeSpace.of(host))
    reads = write(host, [plan])[0]
    assert all(read["scale"] == pytest.approx(1, abs=1e-4) and read["missing"] < 1e-8 for read in reads)
    with torch.no_grad():
        found = host.net(chosen.other.clean).logits
        with replaced(donor, chosen.kept, chosen.means):
            wanted = donor.net(chosen.other.clean).logits
    gap = (found - found.mean(-1, keepdim=True)) - (wanted - wanted.mean(-1, keepdim=True))
    assert gap.abs().max() < 1e-4 * wanted.abs().max()


@pytest.mark.parametrize("family", [*FAMILIES, ONE_KEY_HEAD])
@torch.no_grad()
def test_a_whole_model_fits_into_a_wider_and_deeper_one(family: str, tmp_path: Path):
    """With every head and neuron of a pico model the host computes the same in other blocks, heads and channels."""
    changes = {"sliding_window": None} if family == "mistral" else {}
    donor = dataclasses.replace(tiny.model(family, **changes), folder=tmp_path)
    donor.net.double()
    size = weights.attention(donor, 0).q.shape[2]
    base = (
        GPT2 | {"n_embd": 15 * size, "n_head": 15}
        if donor.anatomy.positions
        else (LLAMA if family == "llama" else NO_BIASES) | {"model_type": family, "head_dim": size}
    )
    wider = (
        {"n_layer": 6}
        if donor.anatomy.positions
        else {"num_hidden_layers": 6, "rope_parameters": donor.config.rope_parameters}
    )
    host = read_host(config(tmp_path, base | wider | changes), donor, 0)
    host.net.double()
    everything = Components({place: ~mask for place, mask in Components.none(donor).masks.items()})
    ids = tiny.ids(6, 20)
    of = Prompts(ids, ids, torch.ones_like(ids, dtype=torch.bool), ids)
    means = {place: mean.mean(1, keepdim=True) for place, mean in mean_outputs(donor, of).items()}
    write(host, [make_plan(donor, "everything", everything, means, of, host, FreeSpace.of(host))])
    other = tiny.ids(4, 24, seed=1)
    found, wanted = host.net(other).logits, donor.net(other).logits
    assert (found - wanted).abs().max() < 1e-4 and wanted.std() > 0.5


@pytest.mark.slow
def test_two_donors_share_a_host(gpt2: Path, circuit: Path, tmp_path: Path):
    """Their channels do not overlap and both behaviours remain; there are no channels left for two more."""
    other = planted.induction(tmp_path / "other", gain=3.0, n_inner=24)
    host = str(config(tmp_path, LLAMA, hidden_size=448, num_attention_heads=7, num_key_value_heads=7))
    requests = [GraftRequest(str(gpt2), "induction", circuit), GraftRequest(str(other), "induction", circuit)]
    report = graft(requests, host, tmp_path / "both", count=4)
    graphs = [
        json.loads((tmp_path / "both" / name).read_text(encoding="utf-8")) for name in ("graph.json", "graph-2.json")
    ]
    for graph, one in zip(graphs, report["grafts"], strict=True):
        check_format(graph)
        landed = {f"head {block}.{head}" for block, head in (each["host"] for each in one["plan"]["heads"])}
        named = {node["clerp"] for node in graph["nodes"] if node["feature_type"] == "attention head"}
        assert {name.partition(" (")[0] for name in named} <= landed
    assert [one["plan"]["channels"] for one in report["grafts"]] == [210, 210]
    assert report["free"] == {"channels": 448 - 2 * 210, "of": 448}
    assert {tuple(head["host"]) for one in report["grafts"] for head in one["plan"]["heads"]} == {
        (1, 0),
        (2, 0),
        (1, 1),
        (2, 1),
    }  # positions are written in block 0
    for number in (0, 1):
        scores = right(report, number)
        assert scores["this graft alone"] >= 0.97 * scores["donor"]
        assert scores["the others alone"] >= 0.97 * scores["donor"]  # they have the same behaviour
        assert scores["host, grafted"] >= 0.97 * scores["donor"]
    said = []
    for donor in (load(gpt2), load(other)):
        chosen = choose_circuit(donor, "induction", circuit=circuit, constant=True, count=4)
        with torch.no_grad(), replaced(donor, chosen.kept, chosen.means):
            said.append(donor.net(chosen.other.clean).logits[chosen.other.asked])
    with torch.no_grad():
        of_both = load(tmp_path / "both").net(chosen.other.clean).logits[chosen.other.asked]
    of_both, mean = (each - each.mean(1, keepdim=True) for each in (of_both, (said[0] + said[1]) / 2))
    # Both have the same behaviour, so each says half of what it says alone.
    assert 0.9 < (of_both * mean).sum() / mean.square().sum() < 1.1
    with pytest.raises(UsageError, match="needs channels"):
        graft([*requests, *requests], str(config(tmp_path, LLAMA, hidden_size=420)), None, count=8)


def test_beside_others_the_constant_lane_is_longer_than_any_stream(gpt2: Path, circuit: Path, tmp_path: Path):
    donor = load(gpt2)
    chosen = choose_circuit(donor, "induction", circuit=circuit, constant=True, count=4)
    lengths = {}
    for beside_others in (False, True):
        host = read_host(config(tmp_path, LLAMA), donor, 0)
        plan = make_plan(
            donor, "induction", chosen.kept, chosen.means, chosen.first, host, FreeSpace.of(host), beside_others=beside_others
        )  # fmt: skip
        lengths[beside_others] = plan.frame.length / host.width**0.5
        assert (plan.apart is not None) == beside_others
        assert not beside_others or plan.frame.constant is not None
    with replaced(donor, chosen.kept, chosen.means):
        inputs = input_lengths(donor, weights.norm_spots(chosen.kept.blocks()), chosen.first.clean)
    longest = max(float(each.mean()) for each in inputs.values())
    assert lengths[True] > 6 * longest > 6 * lengths[False]


@torch.no_grad()
def test_beside_another_circuit_each_says_what_it_says_alone_on_its_own_prompts(
    gpt2: Path, circuit: Path, tmp_path: Path
):
    """Here both are the same circuit, asked at different places."""
    donor = load(gpt2)
    chosen = choose_circuit(donor, "induction", circuit=circuit, constant=True, count=4)
    asked = chosen.first
    elsewhere = dataclasses.replace(
        asked, asked=torch.zeros_like(asked.asked).index_fill(1, torch.tensor([3, 4]), True)
    )
    host = read_host(
        config(tmp_path, LLAMA, hidden_size=1024, num_attention_heads=16, num_key_value_heads=16), donor, 0
    )
    space = FreeSpace.of(host)
    plans = [
        make_plan(donor, "induction", chosen.kept, chosen.means, prompts, host, space, beside_others=True)
        for prompts in (asked, elsewhere)
    ]
    write(host, plans)
    with replaced(donor, chosen.kept, chosen.means):
        alone = donor.net(asked.clean).logits
    for place in (asked.asked, elsewhere.asked):
        said, wanted = (
            each[place] - each[place].mean(1, keepdim=True) for each in (host.net(asked.clean).logits, alone)
        )
        assert (said - wanted).norm() < 0.5 * wanted.norm()  # added up, they would say it twice


def test_a_host_without_biases_gets_heads_and_neurons_for_constants(gpt2: Path, circuit: Path, tmp_path: Path):
    donor = load(gpt2)
    chosen = choose_circuit(donor, "induction", circuit=circuit, constant=True, count=4)

    def planned(reserved: dict[int, int] | None = None, **biases: bool) -> Plan:
        host = read_host(config(tmp_path, LLAMA, **biases), donor, 0)
        return make_plan(
            donor, "induction", chosen.kept, chosen.means, chosen.first, host, FreeSpace.of(host), reserved=reserved
        )

    plan = planned(attention_bias=False, mlp_bias=False)
    (first, _), (last, _) = plan.constant_heads.items()
    assert [first, last] == sorted(plan.layers.values()) == sorted(plan.spares)
    assert {len(neurons) for neurons in plan.spares.values()} == {4} and plan.frame.bos is not None
    assert reversed_blocks(plan).constant_heads == {last: plan.constant_heads[first], first: plan.constant_heads[last]}
    # What is left to later circuits is not taken: the constants of attention then go to a neuron.
    crowded = planned({first: 5, last: 5}, attention_bias=False, mlp_bias=False)
    assert not crowded.constant_heads and {len(neurons) for neurons in crowded.spares.values()} == {1}
    assert not planned().constant_heads and not planned().spares


def test_long_lanes_are_for_hosts_without_layer_norm(gpt2: Path, circuit: Path, tmp_path: Path):
    donor = load(gpt2)
    chosen = choose_circuit(donor, "induction", circuit=circuit, constant=True, count=4)
    llama, other = (read_host(config(tmp_path, kind), donor, 0) for kind in (LLAMA, GPT2))
    assert _can_be_set_apart(llama, [chosen] * 2) and not _can_be_set_apart(llama, [chosen])
    assert not _can_be_set_apart(other, [chosen] * 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tie_word_embeddings": True}, "must not be tied.*tie_word_embeddings.*false"),
        ({"num_hidden_layers": 1}, "is in 2 blocks .* host has 1: choose a deeper"),
        ({"max_position_embeddings": 24}, "at least 25 and 32 tokens; the model has 24 and"),
        ({"vocab_size": 50}, "the host has the donor's tokenizer"),
        ({"model_type": "bert"}, "must be of one of gpt2, llama, mistral, qwen2; got bert"),
        ({"hidden_size": 322}, "must make a model; transformers says.*not a multiple"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1.0001}}, "must tell 128 positions apart"),
    ],
)
def test_hosts_that_cannot_hold_the_circuit_are_refused(
    gpt2: Path, circuit: Path, tmp_path: Path, changes: dict, message: str
):
    with pytest.raises(UsageError, match=message):
        graft(
            [GraftRequest(str(gpt2), "induction", circuit)],
            str(config(tmp_path, LLAMA, **changes)),
            tmp_path / "out",
            count=8,
        )
    assert not (tmp_path / "out").exists()


def test_too_few_key_heads_and_neurons_are_refused(gpt2: Path, tmp_path: Path):
    many = tmp_path / "many.json"
    many.write_text(json.dumps({"heads": {"0": [0, 1], "1": [2]}, "neurons": {"0": list(range(48))}}))
    request = [GraftRequest(str(gpt2), "induction", many)]
    with pytest.raises(UsageError, match="needs 2 key heads in block 0 of host; it has 1"):
        graft(request, str(config(tmp_path, LLAMA, num_key_value_heads=1)), None, count=8)
    with pytest.raises(UsageError, match="needs 48 neurons in block 0 of host; it has 32"):
        graft(request, str(config(tmp_path, LLAMA, intermediate_size=32)), None, count=8)


@pytest.mark.slow
def test_a_circuit_without_a_previous_token_head_needs_a_host_with_the_donors_positions(gpt2: Path, tmp_path: Path):
    """A host with the donor's position scheme accepts the circuit with its own attention; for other hosts,
    synthesised heads for the donor's tokenizer are used instead.
    """
    alone = tmp_path / "alone.json"
    alone.write_text(json.dumps({"heads": {"1": [2]}, "neurons": {}}))
    with pytest.raises(
        StitchError,
        match=r"attends 1 token back at least 50%.*circuit of .* has 1\.2 at 4%: choose a host.*compile_induction",
    ):
        graft([GraftRequest(str(gpt2), "induction", alone)], str(config(tmp_path, LLAMA)), None, count=8)
    assert graft([GraftRequest(str(gpt2), "induction", alone)], str(config(tmp_path, GPT2)), None, count=8)["grafts"]
    compile_induction(tmp_path / "made", arch="llama", context=80, tokenizer=str(gpt2))
    report = graft(
        [GraftRequest(str(tmp_path / "made"), "induction")],
        str(config(tmp_path, LLAMA | SHORT)),
        tmp_path / "out",
        count=8,
    )
    assert right(report)["host, grafted"] > 0.99 > 0.01 > right(report)["noise of the same norm"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "host must be JSON such as"),
        ("{}", "host must be JSON such as"),
        ("{not json", "host.json must be JSON; line 1, column 2"),
        ('{"hidden_size": 3}', "host must be JSON such as"),
        ('{"model_type": "llama", "hiden_size": 64}', r"llama has no 'hiden_size' \(did you mean hidden_size\?\)"),
        (
            '{"model_type": "llama", "hidden_size": true, "mlp_bias": 1}',
            "hidden_size must be a whole .*; mlp_bias must be true",
        ),
        ('{"model_type": "gpt2", "n_layer": 1001}', "n_layer must be a whole number from 1 to 1,000, got 1001"),
        (
            '{"model_type": "llama", "hidden_size": 65536}',
            "must make a model of up to 1,000,000,000 parameters; it has",
        ),
        ('{"model_type": "gpt2", "n_embd": 16, "n_head": 2, "initializer_range": 1e300}', "is not finite"),
    ],
)
def test_a_host_file_that_is_no_config_is_refused(gpt2: Path, tmp_path: Path, text: str, message: str):
    path = tmp_path / "host.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        read_host(path, load(gpt2), 0)


def test_the_command_plans_then_writes_and_does_not_overwrite(gpt2: Path, circuit: Path, tmp_path: Path):
    host, out = config(tmp_path, LLAMA | SHORT, num_hidden_layers=2), tmp_path / "out"
    arguments = ["graft", str(gpt2), "--behaviour", "induction", "--host", str(host), "--circuit", str(circuit)]
    arguments += ["--out", str(out), "--prompts", "6", "-q"]
    planned = CliRunner().invoke(cli.app, [*arguments, "--dry-run"], env={"COLUMNS": "120"})
    assert planned.exit_code == 0 and not out.exists()
    assert "1 back" in planned.output and "111 of 320 channels are left." in planned.output
    written = CliRunner().invoke(cli.app, arguments, env={"COLUMNS": "120"})
    assert written.exit_code == 0 and "host, grafted" in written.output and f"written to {out}" in written.output
    wrong = CliRunner().invoke(cli.app, [*arguments, "--graft", "demo:llama"])
    assert wrong.exit_code == 2 and "--graft must be DONOR=BEHAVIOUR; got demo:llama." in wrong.stderr
    again = CliRunner().invoke(cli.app, arguments)
    assert again.exit_code == 2 and "--out must not exist" in again.stderr
    first = json.loads((out / "graft.json").read_text())
    assert json.loads(CliRunner().invoke(cli.app, [*arguments, "--overwrite", "--json"]).stdout) == first


@pytest.mark.numeric
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_widened_model_computes_the_same(family: str):
    model = tiny.model(family, **({"sliding_window": None} if family == "mistral" else {}))
    model.net.double()
    wide, space = widened(model, channels=50, groups=2, neurons=7)
    ids = tiny.ids()
    assert (wide.net(ids).logits - model.net(ids).logits).abs().max() < 1e-4
    assert space.free >= 50 and space.channels == model.width
    before, after = weights.attention(model, 0), weights.attention(wide, 0)
    assert space.take_group(3, after.k.shape[1]) == before.k.shape[1] and after.k.shape[1] >= before.k.shape[1] + 2
    assert after.shared == before.shared
    assert space.take_neurons(2, 7, weights.mlp(wide, 2).up.shape[1]) == weights.mlp(model, 2).up.shape[1]


def test_a_host_class_with_one_key_head_is_refused(gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Such hosts, and hosts that are no model, are refused before the circuit is searched for."""
    monkeypatch.setattr("stitch.grafts.graft.choose_circuit", None)
    with pytest.raises(UsageError, match="must not be tied"):
        graft(
            [GraftRequest(str(gpt2), "induction")],
            str(config(tmp_path, LLAMA, tie_word_embeddings=True)),
            tmp_path / "out",
        )
    host = tiny.save(tmp_path / "big", "gpt_bigcode")
    with pytest.raises(UsageError, match=r"must have room for more key heads; .*big is a GPTBigCode"):
        graft([GraftRequest(str(gpt2), "induction", None)], str(host), tmp_path / "out")
    with pytest.raises(UsageError, match="share one key head"):
        weights.check(tiny.model("gpt_bigcode", multi_query=False), "the donor of a graft")


@pytest.mark.slow
def test_a_trained_host_gets_the_behaviour(gpt2: Path, circuit: Path, tmp_path: Path):
    host, text, out = tiny.save(tmp_path / "llama", "llama", head_dim=64), tmp_path / "text", tmp_path / "out"
    text.mkdir()
    for number in range(60):
        (text / f"{number}.txt").write_text(f"{number} and {number * 7} make {number * 8}. " * 10)
    request = [GraftRequest(str(gpt2), "induction", circuit)]
    report = graft(request, str(host), out, count=8, strength=20.0, text=str(text), tokens=500)
    scores = right(report)
    assert scores["host without the graft"] < 0.05 and scores["host, grafted"] > 0.9
    assert max(controls(scores)) < 0.1
    before, after = report["text"]["results"]
    assert abs(before["ce"] - after["ce"]) > 1e-2
    net = AutoModelForCausalLM.from_pretrained(out)
    assert type(net).__name__ == "LlamaForCausalLM" and net.config.hidden_size == report["free"]["of"] > 400
    report = graft(request, str(host), tmp_path / "silent", count=8, strength=0.0, text=str(text), tokens=500)
    before, after = report["text"]["results"]
    assert abs(before["ce"] - after["ce"]) < 2e-3  # channels that nothing reads have no effect
