"""Universal machines: one checkpoint runs every program as the reference interpreter does, or reports why it cannot."""

import json
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import cli
from stitch.errors import StitchError, UsageError
from stitch.synthesis import checkpoint, interpreters, kinds
from stitch.synthesis import compile as compile_module
from stitch.synthesis.certify import certify
from stitch.synthesis.compile import compile_machine
from stitch.synthesis.description import described as described_in
from stitch.synthesis.machines import subleq_trials, turing_trials
from stitch.synthesis.machines.subleq import Program, read_subleq
from stitch.synthesis.machines.subleq_run import run_subleq
from stitch.synthesis.machines.turing import Names, Turing, from_description, laid_out, program_text, read_turing
from stitch.synthesis.machines.turing_circuit import ids_of
from stitch.synthesis.machines.turing_run import run_turing

EXAMPLES = Path(__file__).parent.parent / "examples"
TURING = sorted(path for path in EXAMPLES.glob("*.json") if "rules" in json.loads(path.read_text(encoding="utf-8")))
SUBLEQ = sorted(EXAMPLES.glob("subleq_*.json"))
WINDOW, CELLS = 10, 20
FLIP = {"start": "go", "blank": "_", "rules": {"go": {"0": ["1", "R", "go"], "1": ["0", "R", "go"]}}, "tape": "0110"}


@pytest.fixture(scope="module", autouse=True)
def short_first_certificates():
    """Those of compiling; tests that need a certificate make one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compile_module, "FIRST_TOKENS", 500)
        yield


@pytest.fixture(scope="module")
def turing(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("turing") / "machine"
    compile_machine(folder, window=WINDOW, context=480)
    return folder


@pytest.fixture(scope="module")
def subleq(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("subleq") / "machine"
    compile_machine(folder, kind="subleq", cells=CELLS, context=160)
    return folder


def expected(machine: Turing, tape: str, window: int) -> list[str]:
    """The expected output of `stitch run`, from the reference interpreter."""
    cells, head = laid_out(machine, tape, window, machine.head)
    lines = []
    for step, (state, tape_now, place) in enumerate(interpreters.run(machine.rules, machine.start, cells, head)):
        if state in ("halt", "edge"):
            return [*lines, {"halt": "halts", "edge": "leaves the window"}[state]]
        lines.append(
            f"{step:>6}  " + "".join(f"[{state}]{cell}" if at == place else cell for at, cell in enumerate(tape_now))
        )
    raise AssertionError


def run(folder: Path, machine: Turing, tape: str, steps: int = 1000) -> list[str]:
    return list(run_turing(checkpoint.load(folder, torch.float32, "sdpa"), described_in(folder), machine, tape, steps))


def test_random_machines_run_correctly_in_fp32_and_bf16_sdpa_and_eager(turing):
    report = certify(turing, tokens=8_000)
    assert report["certified"] and report["margin"] > 9
    assert max(report["off_mass"].values()) <= 1e-9
    assert sum(row["asked"] for row in report["results"]) > 8_000


def test_one_checkpoint_runs_every_program(turing):
    """Prompted again with its last tape when the context is full, and with its rules in any order."""
    before = (turing / "model.safetensors").read_bytes()
    generator = random.Random(0)
    for path in (EXAMPLES / "busy_beaver_3.json", EXAMPLES / "binary_increment.json"):
        machine = read_turing(path)
        assert run(turing, machine, machine.tape) == expected(machine, machine.tape, WINDOW)
        shuffled = list(machine.rules)
        generator.shuffle(shuffled)
        other = Turing(machine.about, machine.start, machine.blank, tuple(shuffled), machine.tape, machine.head)
        assert run(turing, other, machine.tape) == expected(machine, machine.tape, WINDOW)
    assert (turing / "model.safetensors").read_bytes() == before


def test_a_machine_that_leaves_its_window_is_reported(turing):
    for move in "LR":
        away = from_description({"start": "q", "blank": "0", "rules": {"q": {"0": ["1", move, "q"]}}})
        lines = run(turing, away, "")
        assert lines == expected(away, "", WINDOW) and lines[-1] == "leaves the window"


def test_a_machine_that_does_not_halt_runs_until_it_is_stopped(turing):
    still = from_description({"start": "q", "blank": "0", "rules": {"q": {"0": ["1", "S", "q"], "1": ["0", "S", "q"]}}})
    lines = run(turing, still, "", steps=90)  # more than the context holds
    assert lines[-1] == "goes on" and len(lines) == 92
    assert [line.count("1") for line in (line[8:] for line in lines[:-1])] == [step % 2 for step in range(91)]


def test_gpt2_runs_the_same_programs(tmp_path):
    compile_machine(tmp_path / "m", arch="gpt2", window=6, context=200)
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "m")).__name__ == "GPT2LMHeadModel"
    report = certify(tmp_path / "m", tokens=4_000, settings=[("fp32", "sdpa"), ("bf16", "sdpa")])
    assert report["certified"] and report["margin"] > 9


def test_the_format_of_rules():
    machine = from_description(FLIP)
    text = program_text(machine, Names.of(machine, ""))
    assert text == "A1A2>A2A1>|" and ids_of(text)[1:3] == ids_of("A1A2")[1:]


def test_the_command_shows_the_trace(turing, tmp_path):
    (tmp_path / "flip.json").write_text(json.dumps(FLIP))
    done = CliRunner().invoke(cli.app, ["run", str(turing), str(tmp_path / "flip.json"), "011"])
    assert done.stdout.splitlines() == expected(from_description(FLIP), "011", WINDOW)
    assert done.stdout.splitlines()[-2:] == ["     3  ___100[go]____", "halts"]


REFUSED = {
    "two rules for the same": (
        '{"q": {"0": ["1", "R", "q"], "0": ["0", "R", "q"]}}',
        "may have each key once in an object; it has '0' twice: remove one",
    ),
    "a move": ('{"q": {"0": ["1", "X", "q"]}}', r"rules.q.'0' must be a rule, \[.* L, R or S, next state\], got"),
    "several faults": (
        '{"q": {"0": ["1", "R", ""], "00": ["1", "R", "q"]}}, "head": -1',
        "rules.q.'0' must be a state, .*'00'.* must be a symbol, .*head must be at least 0, got -1",
    ),
    "a head beside the tape": ('{"q": {"0": ["1", "R", "q"]}}, "tape": "01", "head": 2', "tape of 2 cells; it is at 2"),
    "no rule": ('{}, "moves": 3', "it has 'moves'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_ambiguous_and_empty_programs_are_refused(case, tmp_path):
    rules, message = REFUSED[case]
    (tmp_path / "p.json").write_text(f'{{"start": "q", "blank": "0", "rules": {rules}}}')
    with pytest.raises(UsageError, match=message):
        read_turing(tmp_path / "p.json")


def test_programs_that_do_not_fit_are_refused(turing):
    wide = {f"q{n}": {"0": ["0", "R", f"q{n + 1}"]} for n in range(17)}
    with pytest.raises(UsageError, match="16 states at most; it has 18"):
        run(turing, from_description({"start": "q0", "blank": "0", "rules": wide}), "")
    with pytest.raises(UsageError, match="symbols _ 0 1 of the Turing machine; got 2"):
        run(turing, from_description(FLIP), "012")
    with pytest.raises(UsageError, match="window of 10 cells"):
        run(turing, from_description(FLIP), "01" * 6)
    full = {q: {s: ["0", "R", q] for s in "01234567"} for q in "ABCDEFGHIJKLMNOP"}
    too_many = from_description({"start": "A", "blank": "0", "rules": full})
    with pytest.raises(UsageError, match=r"must fit the context of 200; they take"):
        list(run_turing(None, {**described_in(turing), "context": 200}, too_many, "", 1))
    with pytest.raises(UsageError, match="window must be at least 4"):
        kinds.blueprint_of({"kind": "turing", "window": 3, "context": 100})


def test_a_checkpoint_that_writes_no_tape_is_an_error(turing, tmp_path):
    net = checkpoint.load(turing, torch.float32, "sdpa")
    net.lm_head.weight.data[ids_of("|")[1]] = 0.0
    with pytest.raises(StitchError, match=r"must end every tape with \|.*Certify"):
        list(run_turing(net, described_in(turing), from_description(FLIP), "0110", 3))


@pytest.mark.slow
def test_every_example_runs_on_one_checkpoint(tmp_path):
    compile_machine(tmp_path / "m")
    assert len(TURING) >= 20
    for path in TURING:
        machine = read_turing(path)
        assert run(tmp_path / "m", machine, machine.tape) == expected(machine, machine.tape, 32), path.stem


# SUBLEQ


@pytest.mark.slow
def test_random_programs_that_rewrite_themselves_run_correctly(subleq):
    trial = next(subleq_trials.trials(CELLS, 160, 2_000, seed=0))
    report = certify(subleq, tokens=2_000)
    assert report["certified"] and report["margin"] > 9
    assert report["results"][0]["asked"] == trial.asked > 400


def test_random_programs_do_rewrite_themselves():
    generator, rewritten = random.Random(0), 0
    for _ in range(50):
        ran: set[int] = set()
        before = subleq_trials.random_memory(CELLS, generator)
        for _, (_, counter, cells) in zip(range(30), interpreters.subleq(before), strict=False):
            rewritten += any(cells[place] != before[place] for place in ran)
            if counter is None:
                break
            ran |= set(range(counter, min(counter + 3, CELLS)))
            before = cells
    assert rewritten > 10


def put_out(folder: Path, program: Program, steps: int = 200) -> str:
    net = checkpoint.load(folder, torch.float32, "sdpa")
    return list(run_subleq(net, described_in(folder), program, steps))[-1]


def test_a_program_that_turns_its_own_jump_into_a_halt(subleq):
    program = read_subleq(EXAMPLES / "subleq_self_modifying.json")
    assert put_out(subleq, program) == "halts; put out: '*'"
    endless = list(program.memory)
    endless[endless.index(1)] = 0  # nothing changes
    assert put_out(subleq, Program("", tuple(endless)), steps=9).startswith("goes on; put out: '***'")


@pytest.mark.slow
def test_a_loop_counts_down_beyond_the_context(subleq):
    program = read_subleq(EXAMPLES / "subleq_count_down.json")
    assert put_out(subleq, program) == "halts; put out: '9876543210'"


@pytest.mark.parametrize(
    "found, message",
    [
        ({"memory": [300, -200]}, r"memory\[0\] must be at most 255, got 300; memory\[1\] must be at least -128"),
        ({}, "needs 'memory'"),
        ({"memory": []}, "at least 1"),
        ({"memory": [1.0, True]}, r"memory\[0\] must be a whole number, got 1.0; memory\[1\] must be a whole number"),
    ],
)
def test_invalid_memories_are_refused(found, message, tmp_path):
    (tmp_path / "p.json").write_text(json.dumps(found))
    with pytest.raises(UsageError, match=message):
        read_subleq(tmp_path / "p.json")


def test_memories_too_large_for_subleq_are_refused(tmp_path):
    with pytest.raises(UsageError, match="must fit the checkpoint's 20 cells; it has 30"):
        Program("", (0,) * 30).filled(20)
    with pytest.raises(UsageError, match="arch must be gpt2"):
        compile_machine(tmp_path / "m", kind="subleq", arch="llama", cells=8, context=64)
    with pytest.raises(UsageError, match="must hold two frames of 66 tokens"):
        compile_machine(tmp_path / "m", kind="subleq", context=100)
    with pytest.raises(UsageError, match="kind must be one of turing, subleq"):
        compile_machine(tmp_path / "m", kind="brainfuck")


@pytest.mark.parametrize("path", SUBLEQ, ids=lambda path: path.stem)
def test_subleq_examples_halt_with_the_expected_output(path):
    says = {
        "subleq_hello_world": b"Hello, world!\n",
        "subleq_count_down": b"9876543210",
        "subleq_multiply": b"*",
        "subleq_fibonacci": bytes([1, 2, 3, 5, 8, 13, 21, 34, 55, 89]),
        "subleq_self_modifying": b"*",
    }
    steps = list(zip(range(1000), interpreters.subleq(read_subleq(path).filled(64)), strict=False))
    assert bytes(out for _, (out, _, _) in steps if out is not None) == says[path.stem]
    assert steps[-1][1][1] is None


@pytest.mark.parametrize("path", TURING, ids=lambda path: path.stem)
def test_turing_examples_halt_inside_the_window(path):
    machine = read_turing(path)
    assert machine.about and expected(machine, machine.tape, 32)[-1] == "halts"
    assert turing_trials.texts(machine, *laid_out(machine, machine.tape, 32, machine.head), 2048)
