"""Automata, patterns and induction as stock checkpoints: read back from disk they are exact in every supported mode,
or refused.
"""

import json
import random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import cli
from stitch.errors import StitchError, UsageError
from stitch.internals.positions import offset_head
from stitch.synthesis import compile as compile_module
from stitch.synthesis import kinds
from stitch.synthesis.automata.automaton import Automaton
from stitch.synthesis.automata.read import from_description
from stitch.synthesis.automata.stepwise import exact_codes, random_codes, stepwise
from stitch.synthesis.blueprint import Block, Blueprint, all_of, one_hots
from stitch.synthesis.build import build
from stitch.synthesis.certify import certify
from stitch.synthesis.compile import compile_automaton, compile_induction, compile_pattern
from stitch.synthesis.description import described as described_in
from stitch.synthesis.patterns.factorise import completed, errors, factorise, naive
from stitch.synthesis.patterns.pattern import causal_softmax, read_pattern
from stitch.synthesis.rope_heads import THETA, plane_head
from stitch.synthesis.run import trace
from stitch.synthesis.trials import outcome

ARCHS = ("gpt2", "llama")
A5 = {
    "transitions": {str(q): {"a": str((q + 1) % 5), "b": str([1, 2, 0, 3, 4][q])} for q in range(5)},
    "start": "0",
    "outputs": {str(q): str(q) for q in range(5)},
}


@pytest.fixture(scope="module", autouse=True)
def short_first_certificates():
    """Compiling certifies; most tests here do it again, on a number of tokens of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compile_module, "FIRST_TOKENS", 1_000)
        yield


def random_automaton(generator: random.Random, states: int = 16, symbols: int = 8) -> Automaton:
    """Random transitions. Some states may be unreachable, which compilation ignores."""
    q, a = generator.randint(2, states), generator.randint(1, symbols)
    steps = tuple(tuple(generator.randrange(q) for _ in range(a)) for _ in range(q))
    names = tuple(f"{state}" for state in range(q))
    says = tuple(tuple(f"<{to}>" for to in row) for row in steps)
    return Automaton(names, tuple("abcdefgh"[:a]), generator.randrange(q), steps, says)


def described(automaton: Automaton, arch: str, mode: str = "stepwise", length: int = 40, **more) -> dict:
    return {
        "kind": "automaton", "source": "test", "arch": arch, "mode": mode, "length": length, "dimension": 64, "seed": 0, **more,
        "automaton": automaton.as_json(),
    }  # fmt: skip


def tried(description: dict, tokens: int = 2_000) -> list:
    net = build(kinds.blueprint_of(description), description["arch"]).net
    return [outcome(net, trial) for trial in kinds.trials_of(description, tokens, seed=1)]


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("mode", kinds.MODES)
def test_a_compiled_regular_expression_is_certified_in_fp32_and_bf16_sdpa_and_eager(mode, arch, tmp_path):
    compile_automaton("(ab|ba)*c?", tmp_path / "dfa", arch=arch, mode=mode, length=48)
    report = certify(tmp_path / "dfa", tokens=3_000)
    assert report["certified"] and report["margin"] >= 0.9 * report["ideal"]
    assert {(row["dtype"], row["attention"]) for row in report["results"]} == {
        ("fp32", "sdpa"), ("fp32", "eager"), ("bf16", "sdpa"), ("bf16", "eager")
    }  # fmt: skip
    assert max(report["off_mass"].values()) <= 1e-9
    assert json.loads((tmp_path / "dfa" / "certificate.json").read_text())["margin"] == report["margin"]


def test_a_checkpoint_needs_only_transformers(tmp_path):
    compile_automaton("(ab)*", tmp_path / "dfa", length=16)
    net = AutoModelForCausalLM.from_pretrained(tmp_path / "dfa")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "dfa")
    assert type(net).__name__ == "LlamaForCausalLM"
    ids = tokenizer("a", return_tensors="pt")["input_ids"]
    assert tokenizer.decode(net(ids).logits[0, -1].argmax()) == "<1>"
    with pytest.raises(Exception, match=r"(?i)unk"):
        tokenizer("z")


@pytest.mark.parametrize("arch", ARCHS)
def test_random_automata_are_exact_on_all_short_strings_and_on_long_ones(arch):
    generator = random.Random(0)
    for number in range(6):
        found = tried(described(random_automaton(generator), arch))
        assert not any(one.wrong for one in found), number
        assert min(one.margin for one in found) > 9.9


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
def test_five_hundred_random_automata(arch):
    generator = random.Random(1)
    assert not any(one.wrong for _ in range(500) for one in tried(described(random_automaton(generator), arch), 1_000))


@pytest.mark.parametrize("arch", ARCHS)
def test_the_word_problem_of_a5_in_logarithmically_many_blocks(arch):
    description = described(from_description(A5), arch, "parallel", length=200)
    assert len(kinds.blueprint_of(description).blocks) == 8
    found = tried(description, 2_000)
    assert not any(one.wrong for one in found) and min(one.margin for one in found) > 9.9


def test_a_certificate_fails_when_a_weight_is_changed(tmp_path):
    folder = tmp_path / "dfa"
    compile_automaton("(ab|ba)*c?", folder, length=16)
    state = load_file(folder / "model.safetensors")
    state["model.layers.0.mlp.down_proj.weight"][:, 3] *= -1
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    report = certify(folder, tokens=1_000, settings=[("fp32", "sdpa")])
    assert not report["certified"] and sum(row["wrong"] for row in report["results"]) > 0
    assert CliRunner().invoke(cli.app, ["certify", str(folder), "--tokens", "500", "-q"]).exit_code == 1


def test_compiling_twice_gives_the_same_bytes(tmp_path):
    for name in "ab":
        compile_automaton("a*b", tmp_path / name, mode="vsa", length=8, seed=3)
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


def test_nearly_orthogonal_vectors_take_fewer_channels_than_states():
    hundred = tuple(str(state) for state in range(100))
    counter = Automaton(
        hundred,
        ("a",),
        0,
        tuple(((q + 1) % 100,) for q in range(100)),
        tuple((f"<{(q + 1) % 100}>",) for q in range(100)),
    )
    codes = random_codes(counter, 40)
    exact, coded = (stepwise(counter, 8, one) for one in (exact_codes(counter), codes))
    assert 0 < codes.coherence < 0.9 and coded.embedding.shape[1] < exact.embedding.shape[1]
    assert torch.allclose(codes.said.norm(dim=1), torch.ones(len(codes.said), dtype=torch.float64))
    found = tried(described(counter, "llama", "vsa", length=250, dimension=40))
    assert not any(one.wrong for one in found) and min(one.margin for one in found) > 9.9


def test_vectors_that_are_too_similar_are_refused():
    with pytest.raises(UsageError, match=r"dimension must give .* Raise it"):
        random_codes(random_automaton(random.Random(5), states=16), 4)
    with pytest.raises(UsageError, match="must be even"):
        random_codes(from_description(A5), 5)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(mode="parallel", spec="a{9}"), "8 states at most; 11 would need 2,904 neurons.*stepwise"),
        (dict(mode="other"), "mode must be one of stepwise, parallel, vsa"),
        (dict(length=1), "length must be 2 to 16,383; got 1"),
        (dict(length=10**9), "length must be 2 to 16,383; got 1000000000"),
        (dict(seed=-1), "seed must be 0 to"),
        (dict(mode="vsa", dimension=10**9), "dimension must be 2 to 4,096"),
        (dict(spec="[a-n]{1000}"), r"may take 33,554,432 weights; its .* Use `mode=vsa`"),
        (dict(arch="bert"), "arch must be one of gpt2, llama"),
        (dict(spec="(s|t)*", mode="vsa", dimension=2), "dimension must give .* Raise it"),
    ],
)
def test_unsupported_requests_are_refused(change, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        compile_automaton(change.pop("spec", "(ab)*"), tmp_path / "dfa", **change)
    assert not (tmp_path / "dfa").exists()


def test_outputs_that_depend_on_transitions_are_refused_in_parallel_mode():
    mealy = {
        "transitions": {"q": {"a": ["q", "x"], "b": ["r", "y"]}, "r": {"a": ["q", "y"], "b": ["r", "y"]}},
        "start": "q",
    }
    with pytest.raises(UsageError, match="one output for each state"):
        kinds.blueprint_of(described(from_description(mealy), "llama", "parallel"))


def test_running_shows_every_symbol_with_its_output(tmp_path):
    for mode in ("stepwise", "parallel"):
        folder = tmp_path / mode
        compile_automaton("(ab|ba)*c?", folder, mode=mode, length=8)
        done = CliRunner().invoke(cli.app, ["run", str(folder), "abc"])
        assert done.stdout == "a <1> b <0+> c <3+>\n"
        for text, message in (
            ("abz", "must consist of the symbols a b c; got 'abz'"),
            ("ab" * 5, "may have 8 symbols; got 10"),
        ):
            done = CliRunner().invoke(cli.app, ["run", str(folder), text])
            assert done.exit_code == 2 and message in done.stderr
    with pytest.raises(UsageError, match="tape may be given for Turing machines only"):
        list(trace(tmp_path / "parallel", "ab", "01", steps=1))
    with pytest.raises(UsageError, match="must be a folder with a compiled checkpoint"):
        described_in(tmp_path)


def test_embeddings_of_unequal_norm_are_an_error():
    embedding = torch.eye(3, 4, dtype=torch.float64) * torch.tensor([1.0, 1.0, 2.0])[:, None]
    neurons = all_of(one_hots(torch.tensor([1]), 4)[None], one_hots(torch.tensor([3]), 4))
    specimens = torch.tensor([[0, 1, 2]])
    uneven = Blueprint(
        ("<s>", "a", "b"),
        embedding,
        (Block((), neurons),),
        torch.eye(4, 3, dtype=torch.float64),
        8,
        specimens,
        specimens > 0,
    )
    for arch in ARCHS:
        with pytest.raises(StitchError, match="must have equal norms"):
            build(uneven, arch)


def test_a_neuron_is_one_where_all_conditions_hold_and_zero_elsewhere():
    reads = torch.eye(3, dtype=torch.float64)[:, None]
    neuron = all_of(reads, torch.ones(1, 3, dtype=torch.float64))
    for bits in range(8):
        x = torch.tensor([float(bits >> place & 1) for place in range(3)], dtype=torch.float64)
        assert torch.relu(x @ neuron.read - neuron.threshold).item() == float(bits == 7)


# Attention patterns


@pytest.mark.parametrize(
    "what, targets",
    [
        ("previous", [0, 0, 1, 2, 3, 4]),
        ("self", [0, 1, 2, 3, 4, 5]),
        ("first", [0] * 6),
        ("parent", [0, 0, 1, 1, 2, 2]),
        ("offset:3", [0, 0, 0, 0, 1, 2]),
        ("block:2", [0, 0, 2, 2, 4, 4]),
    ],
)
def test_patterns_by_name(what, targets):
    assert read_pattern(what, 6).targets.tolist() == targets


@pytest.mark.parametrize(
    "found, message",
    [
        ([[1, 0], [0.5, 0.4]], "row 1 of .* sums to 0.9"),
        ([[0.5, 0.5], [0.5, 0.5]], "must be causal"),
        ([[1, 0], [1.5, -0.5]], "must not be negative"),
        ([[1, 0], [float("nan"), 1]], "must be finite"),
        ([0, 2], "targets must be causal"),
        ([0, 0, 0], "must hold 2 targets or 2 rows"),
    ],
)
def test_matrices_that_are_not_attention_are_refused(found, message, tmp_path):
    np.save(tmp_path / "p.npy", np.array(found))
    with pytest.raises(UsageError, match=message):
        read_pattern(str(tmp_path / "p.npy"), 2)


@pytest.mark.parametrize("what", ["later", "offset:x", "block:0", "self:2", "offset:-1", "offset:٣", "no.json"])
def test_unknown_patterns_are_refused(what):
    with pytest.raises(UsageError, match="the pattern must be previous"):
        read_pattern(what, 8)


BOTH = [(what, arch) for what in ("previous", "offset:37") for arch in ARCHS]


@pytest.mark.numeric
@pytest.mark.parametrize("what, arch", [*BOTH, ("parent", "gpt2"), ("block:7", "gpt2")])
def test_hard_patterns_leave_almost_no_attention_elsewhere(what, arch, tmp_path):
    compile_pattern(what, tmp_path / "p", arch=arch, length=300)
    report = certify(tmp_path / "p", tokens=1_000)
    assert report["certified"] and report["margin"] > 9
    assert 0 < max(report["off_mass"].values()) <= 1e-9
    assert all(20 < gap < 200 for gap in report["logit_gap"].values())


def test_targets_at_no_fixed_offset_need_learned_positions(tmp_path):
    with pytest.raises(UsageError, match=r"RoPE encodes distances.*gpt2"):
        compile_pattern("parent", tmp_path / "p", arch="llama", length=16)


def test_positions_choose_the_architecture_and_must_agree_with_it(tmp_path):
    report = compile_pattern("previous", tmp_path / "p", positions="rope", length=16)
    assert report["description"]["arch"] == "llama"
    with pytest.raises(UsageError, match="positions must be learned for gpt2; got rope"):
        compile_pattern("previous", tmp_path / "q", arch="gpt2", positions="rope", length=16)
    with pytest.raises(UsageError, match="must be one of learned, rope; got 'alibi'"):
        compile_pattern("previous", tmp_path / "q", positions="alibi", length=16)


@pytest.mark.numeric
def test_heads_on_rope_planes_are_exact_up_to_their_stated_length():
    found = offset_head(THETA ** -(torch.arange(0, 64, 2, dtype=torch.float64) / 64), 1, 64)
    reach = found.reach(10_000)
    assert 64 <= reach < 10_000
    behind = torch.arange(1, 10_000, dtype=torch.float64)
    scores = (behind[:, None] * found.frequencies).cos() @ found.weights
    assert scores[: reach - 2].max() <= 1 - found.gap / 2 < scores[reach - 2]
    assert plane_head(1, 64).gap == pytest.approx(found.gap)


@pytest.mark.numeric
def test_the_fit_finds_factors_of_the_right_rank_and_the_svd_of_the_logarithm_does_not():
    pattern = read_pattern("random:4", 64).matrix
    fitted = errors(pattern, *factorise(pattern, 4))
    assert fitted["max"] < 1e-3
    assert errors(pattern, *naive(pattern, 4))["mean"] > 0.2
    assert fitted["mean"] < errors(pattern, *completed(pattern, 4))["mean"]
    assert errors(pattern, *factorise(pattern, 2))["mean"] > 0.05  # with one rank less the error shows


def test_factors_do_not_depend_on_shifts_that_softmax_ignores():
    scores = torch.randn(24, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pattern = causal_softmax(scores @ scores.T)
    q, k = factorise(pattern, 3)
    assert torch.allclose(causal_softmax(q @ k.T + torch.arange(24)[:, None]), causal_softmax(q @ k.T))
    assert errors(pattern, q, k)["max"] < 2e-3


@pytest.mark.numeric
def test_weights_reproduce_a_soft_pattern_as_well_as_its_factors(tmp_path):
    report = compile_pattern("random:4", tmp_path / "p", length=48, rank=6)
    best = report["description"]["rank_curve"][-1]["max"]
    assert report["certified"] and report["apart"]["fp32"]["max"] <= best + 1e-3
    assert report["apart"]["bf16"]["max"] < 0.05


# Induction


@pytest.mark.parametrize("arch", ARCHS)
def test_induction_from_synthesised_heads_predicts_earlier_continuations(arch, tmp_path):
    compile_induction(tmp_path / "i", arch=arch, context=64)
    report = certify(tmp_path / "i", tokens=2_000)
    assert report["certified"] and report["margin"] > 9
    assert report["results"][0]["asked"] > 500


def test_induction_uses_the_vocabulary_of_a_model(tmp_path):
    compile_induction(tmp_path / "i", arch="llama", context=64, tokenizer="demo:gpt2")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "i")
    assert (
        tokenizer("def f(x):")["input_ids"]
        == AutoTokenizer.from_pretrained("stitch/demo/gpt2")("def f(x):")["input_ids"]
    )
    net = AutoModelForCausalLM.from_pretrained(tmp_path / "i")
    assert net.config.vocab_size == 4096 and net.num_parameters() < 2_000_000


def test_contents_that_rope_would_rotate_are_refused():
    with pytest.raises(UsageError, match="heads must compare 16 numbers over 32,768 tokens"):
        build(
            kinds.blueprint_of({"kind": "induction", "tokens": [str(n) for n in range(40_000)], "context": 32_768}),
            "llama",
        )
