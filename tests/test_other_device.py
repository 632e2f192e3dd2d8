"""Every command on a device that is not the CPU."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.utils.backend_registration

import other_device
import small_commands
import tiny
import tokenizers_made
import written_commands

pytestmark = pytest.mark.skipif(
    not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch cannot have a device that is written in Python",
)

TESTS = Path(__file__).parent
TEXT = "--tokens 2048 --context 32 --text {text}"
BRIEF = "--brief --features 64 --k 8 --sae-passes 0.2"
READ = {
    "eval": "eval {gpt2} --against {qwen3} " + TEXT,
    "eval --behaviour": "eval {donor} --behaviour induction --prompts 8",
    "eval --trace": "eval {gpt2} --trace {document} --controls 10 --against {gpt2} --tokens 1024 --context 32 --text {text}",
    "inspect --heads": "inspect {qwen3} --heads " + TEXT,
    "inspect --sites": "inspect {gpt2} --sites " + TEXT,
    "circuit": "circuit {donor} --behaviour induction --prompts 8 --keep 0.5",
    "join --text self": "join {qwen3} {qwen3} --layer 2 --layer-b 4 --native --text self --tokens 4096 --context 32",
    "join, jumprelu": (
        "join {gpt2} {qwen3} --layer 2 --architecture jumprelu --matching unbalanced --context 32 --tokens 4096 --text {text} "
        + BRIEF
    ),
    "join in bf16": "join {gpt2} {qwen3} --layer 2 --dtype bf16 --context 32 --tokens 4096 --text {text} " + BRIEF,
    "join across tokenizers": "join {gpt2} {spelled} --layer 2 --context 64 --tokens 4096 --text {text} " + BRIEF,
}
MADE = {name: f"{name} {words}".replace(" --device cpu", "") for name, words in written_commands.WRITTEN.items()}
FAST = ("heads", "circuit")


# A process of its own: torch's autograd knows only the devices that there were at its first backward pass. SAELens loads through
# safetensors, which does not know the device.
PROGRAM = """
import sys
import other_device
other_device.add()
import sae_lens
load = sae_lens.SAE.load_from_disk
sae_lens.SAE.load_from_disk = lambda folder, device: load(folder, device="cpu").to(device)
import cli
sys.argv[0] = "stitch"
cli.app()
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """The files that commands name. `spelled` is a model with a tokenizer of its own."""
    small, made, spelled = (tmp_path_factory.mktemp(name) for name in ("small", "made", "spelled"))
    tokenizer = tokenizers_made.with_byte_fallback()
    tiny.save(spelled, "qwen3", seed=1, hidden_size=48, vocab_size=len(tokenizer))
    tokenizer.save_pretrained(spelled)
    return {**small_commands.make_inputs(small), **written_commands.make_files(made), "spelled": spelled}


def test_tensors_of_two_devices_cannot_be_combined():
    """The other tests rely on this."""
    other_device.add()
    there, here = torch.ones(3, device=other_device.NAME), torch.ones(3)
    assert (there + there.to("cpu").to(there.device)).sum().item() == 6
    with pytest.raises(RuntimeError, match="same device"):
        there + here
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()


def of_all(*commands: Sequence[str]) -> list:
    return [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for names in commands for name in names]


@pytest.mark.parametrize("name", of_all(small_commands.COMMANDS, MADE))
def test_a_command_that_writes_a_folder_runs_on_another_device(name, files, tmp_path):
    if name in MADE:
        run([*MADE[name].format(**files).split(), "--out", str(tmp_path / "out")])
    else:
        run(
            [word for word in small_commands.words_of(name, files, tmp_path / "out") if word not in ("--device", "cpu")]
        )


@pytest.mark.parametrize("name", of_all(READ))
def test_a_command_that_reads_models_runs_on_another_device(name, files, tmp_path):
    words = READ[name].format(**files).split()
    run([*words, *(("--out", str(tmp_path / "out")) if words[0] == "join" else ())])


@pytest.mark.slow
def test_what_is_compiled_is_certified_and_runs_on_another_device(files, tmp_path):
    compiled = str(tmp_path / "compiled")
    run(["compile", "automaton", str(files["even"]), "--length", "16", "--out", compiled])
    run(["certify", compiled, "--tokens", "1000"])
    run(["run", compiled, "eee"])


def run(words: Sequence[str]) -> None:
    places = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words, "--device", other_device.NAME, "--debug"],
        env={**os.environ, "PYTHONPATH": places}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
