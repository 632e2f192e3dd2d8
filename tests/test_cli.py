"""The command line in a process of its own: exit codes, one-line errors on stderr, and the files that remain."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import cli
import tiny
from jobs import write_text
from stitch.circuits.behaviours.named import make_prompts

RUN = ["--tokens", "8192", "--context", "32", "--features", "64", "--k", "8", "--memory", "256M", "--device", "cpu"]


@pytest.fixture(scope="module")
def donors(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("donors")
    return {
        "gpt2": tiny.save(root / "gpt2", "gpt2"),
        "qwen3": tiny.save(root / "qwen3", "qwen3", hidden_size=48),
        "text": write_text(root),
    }


def invoke(*arguments: str | Path | int):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def stitch(donors: dict[str, Path], *more: str | Path, a: Path | str | None = None, text: Path | None = None):
    place = [a or donors["gpt2"], donors["qwen3"], "--text", text or donors["text"]]
    layer = [] if "--layer" in more else ["--layer", "2"]
    return invoke(*place, *layer, *RUN, *more)


@pytest.fixture(scope="module")
def brief(donors, tmp_path_factory):
    """A brief join: its folder, and what the command printed."""
    folder = tmp_path_factory.mktemp("brief") / "c"
    done = stitch(donors, "--json", "--out", folder, "--sae-passes", "0.5", "--brief")
    assert done.exit_code == 0, done.stderr
    return folder, done


def test_the_default_command_prints_json_alone_on_stdout_and_progress_on_stderr(brief):
    folder, done = brief
    assert json.loads(done.stdout) == json.loads((folder / "report.json").read_text())
    assert "SAE training (steps): 15 of 15" in done.stderr


def test_a_join_shows_every_row_in_a_table_and_scores_as_it_says(brief, donors, tmp_path):
    shutil.copytree(brief[0], tmp_path / "c")
    table = stitch(donors, "--out", tmp_path / "c", "--overwrite", "--quiet", "--sae-passes", "0.5")
    assert table.exit_code == 0 and not table.stderr
    report = json.loads((tmp_path / "c" / "report.json").read_text())
    for row in report["results"]:
        assert row["name"] in table.stdout
    assert "null:no-source − translation:affine+free+tables" in table.stdout
    again = invoke(
        "eval", tmp_path / "c", "--text", donors["text"], "--tokens", report["tokens"]["report"], "--context", "32",
        "--json", "-q",
    )  # fmt: skip
    assert again.exit_code == 0, again.stderr
    ce = next(row["ce"] for row in report["results"] if row["name"] == "composite")
    assert json.loads(again.stdout)["results"][0]["ce"] == pytest.approx(ce, abs=1e-5)


def test_a_behaviour_is_scored_beside_corrupt_prompts_and_chance(donors):
    done = invoke("eval", donors["qwen3"], "--behaviour", "induction", "--prompts", "8", "--json", "-q")
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    asked = make_prompts("induction", tiny.tokenizer(), count=8)
    with torch.no_grad():
        likeliest = AutoModelForCausalLM.from_pretrained(donors["qwen3"])(asked.clean).logits.argmax(-1)
    right = (likeliest == asked.answers)[asked.asked].float().mean()
    assert report["results"][0]["right"] == pytest.approx(float(right)) and report["chance"] == 1 / tiny.VOCABULARY
    places = int(asked.asked.sum())
    assert (report["prompts"], report["places"]) == (8, places)
    shown = invoke("eval", donors["qwen3"], "--behaviour", "induction", "--prompts", "8", "-q")
    assert shown.exit_code == 0 and not shown.stderr
    assert all(
        name in shown.stdout for name in ("clean", "corrupt", "chance", f"{places} tokens asked for", "tokens back")
    )
    refused = invoke("eval", donors["qwen3"], "--behaviour", "inducton")
    assert refused.exit_code == 2 and "got inducton" in refused.stderr


def test_inspect_shows_the_shape_of_a_model(donors):
    done = invoke("inspect", donors["qwen3"], "--json")
    facts = json.loads(done.stdout)
    assert done.exit_code == 0
    assert {"family": "Qwen3", "blocks": 6, "width": 48, "vocabulary": 128}.items() <= facts.items()
    assert facts["parameters per block"] == sum(
        parameter.numel() for parameter in tiny.net("qwen3", hidden_size=48).model.layers[0].parameters()
    )


def corrupt(folder: Path, how: str) -> Path:
    weights = folder / "model.safetensors"
    if how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "corrupt":
        weights.write_bytes(b"\xff" * 8 + weights.read_bytes()[8:])
    elif how == "missing":
        weights.unlink()
    elif how == "pickle":
        weights.rename(folder / "pytorch_model.bin")
    elif how == "nan":
        tensors = load_file(weights)
        name = next(name for name in tensors if "mlp" in name and name.endswith("weight"))
        tensors[name][:] = float("nan")
        save_file(tensors, weights, metadata={"format": "pt"})
    else:
        config = json.loads((folder / "config.json").read_text())
        changes = {
            "family": {"model_type": "mamba", "architectures": ["MambaForCausalLM"]},
            "encoder": {"model_type": "bert", "architectures": ["BertModel"]},
            "quantised": {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        }
        (folder / "config.json").write_text(json.dumps(config | changes[how]))
    return folder


@pytest.mark.parametrize(
    "how, code, message",
    [
        ("truncated", 1, "model.safetensors"),
        ("corrupt", 1, "model.safetensors"),
        ("missing", 2, "safetensors"),
        ("pickle", 2, "pickle"),
        ("nan", 1, "NaN or infinity"),
        ("family", 1, "the weights of"),
        ("encoder", 2, "must be a decoder"),
        ("quantised", 2, "gptq"),
    ],
)
def test_unusable_models_are_refused_in_one_line(how, code, message, donors, tmp_path):
    bad = corrupt(tiny.save(tmp_path / "bad", "gpt2"), how)
    before = sorted(tmp_path.rglob("*"))
    done = stitch(donors, "--out", tmp_path / "c", "--quiet", a=bad)
    assert (done.exit_code, done.stdout) == (code, "")
    assert done.stderr.startswith("stitch: ") and done.stderr.count("\n") == 1 and message in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "more, code, message",
    [
        (["--layer", "7"], 2, "layer must be in 0..6"),
        (["--layer-b", "9"], 2, "--layer-b must be in 0..6"),
        (["--cache-size", "-1"], 2, "--cache-size must be a size such as 512M or 4G; got '-1'"),
        (["--features", "32"], 2, "--features must be at least the width, 48; got 32"),
        (["--features", "1000000"], 2, "--features must fit into --memory"),
        (["--memory", "lots"], 2, "--memory must be a size such as 512M or 4G; got 'lots'"),
        (["--device", "warp"], 2, "--device must name a device of this machine"),
        (["--device", "mps"], 2, "--device must compute in float64, which mps does not: use cpu"),
        (["--sae-a", "nowhere"], 1, "there is no folder nowhere"),
    ],
)
def test_impossible_requests_are_refused_in_one_line(more, code, message, donors, tmp_path):
    done = stitch(donors, "--out", tmp_path / "c", "--quiet", *more)
    assert (done.exit_code, done.stdout) == (code, "")
    assert done.stderr.startswith("stitch: ") and done.stderr.count("\n") == 1 and message in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_sae_of_another_width_is_refused(brief, donors, tmp_path):
    folder, _ = brief
    given = stitch(
        donors,
        "--out",
        tmp_path / "d",
        "--quiet",
        "--brief",
        "--sae-a",
        folder / "sae-a",
        "--sae-b",
        folder / "sae-b",
    )
    assert given.exit_code == 0, given.stderr
    swapped = stitch(donors, "--out", tmp_path / "e", "--quiet", "--sae-a", folder / "sae-b")
    assert swapped.exit_code == 1 and "reads 48" in swapped.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d"]


def test_missing_models_and_texts_are_named(donors, tmp_path):
    missing = stitch(donors, "--out", tmp_path / "c", "--quiet", a="./no-such-model")
    assert missing.exit_code == 2 and "no-such-model" in missing.stderr and missing.stderr.count("\n") == 1
    offline = stitch(donors, "--out", tmp_path / "c", "--quiet", a="someone/some-model")
    assert offline.exit_code == 1 and "someone/some-model" in offline.stderr and offline.stderr.count("\n") == 1
    (tmp_path / "tiny.txt").write_text("hello")
    small = stitch(donors, "--out", tmp_path / "c", "--quiet", text=tmp_path / "tiny.txt")
    assert small.exit_code == 1 and "use more or longer text" in small.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.txt"]


def test_a_traceback_is_shown_only_on_request(donors, tmp_path):
    done = stitch(donors, "--out", tmp_path / "c", "--debug", "--layer", "9")
    assert type(done.exception).__name__ == "UsageError"


@pytest.mark.slow
def test_a_run_that_was_killed_and_resumed_writes_the_same_bytes(donors, tmp_path):
    def start(out: Path, *more: str) -> subprocess.Popen:
        command = [
            sys.executable,
            "-m",
            "cli",
            donors["gpt2"],
            donors["qwen3"],
            "--layer",
            "2",
            "--text",
            donors["text"],
            "--cache-size",  # otherwise the second run would find the first one's activations and SAEs
            "0",
            *RUN,
        ]
        root = Path(__file__).parent.parent
        environment = {**os.environ, "PYTHONPATH": str(root)}
        return subprocess.Popen(
            [*map(str, command), "--out", str(out), "-q", *more], env=environment, stderr=subprocess.PIPE
        )

    began = time.perf_counter()
    assert start(tmp_path / "whole").wait() == 0
    length = time.perf_counter() - began
    for share in (0.35, 0.5, 0.65, 0.8, 0.95):
        process = start(tmp_path / "cut", "--resume")
        time.sleep(share * length)
        process.kill()
        process.wait()
        if (tmp_path / "cut").exists():  # the run finished before it could be killed: start again
            break
    if not (tmp_path / "cut").exists():
        process = start(tmp_path / "cut", "--resume")
        assert process.wait() == 0, process.stderr.read()
    assert not list(tmp_path.glob(".*"))
    for path in sorted((tmp_path / "whole").rglob("*")):
        other = tmp_path / "cut" / path.relative_to(tmp_path / "whole")
        if path.name == "report.json":
            one, two = json.loads(path.read_text()), json.loads(other.read_text())
            assert {**one, "seconds": None} == {**two, "seconds": None}
        elif path.is_file():
            assert path.read_bytes() == other.read_bytes(), path
