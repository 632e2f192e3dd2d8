"""Commands on pico models whose disk fails at one step of writing: exit code 1, one line, and the old output is intact."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

import cli
from faults import ERRORS, Disk, content_of, failing_disk, old_output
from jobs import gpt2_and_qwen3

SMALL = ("--tokens", "4096", "--context", "32", "--device", "cpu", "-q")
BRIEF = ("--brief", "--features", "64", "--k", "8", "--sae-passes", "0.2")
COMMANDS = {
    "join": ("join", "{gpt2}", "{qwen3}", "--layer", "2", *SMALL, *BRIEF),
    "native": ("join", "{gpt2}", "{gpt2}", "--layer", "2", "--layer-b", "4", "--native", *SMALL),
    "chain": ("chain", "{parts}", *SMALL, *BRIEF),
    "sweep": ("sweep", "{gpt2}", "{qwen3}", *SMALL),
    "heads": ("convert", "heads", "{gpt2}", "--kv-heads", "1", "--held-out", "4096", *SMALL),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    found = gpt2_and_qwen3(tmp_path_factory.mktemp("models"))
    parts = found["gpt2"].parent / "chain.yaml"
    parts.write_text(f"parts:\n  - {{model: {found['gpt2']}, to: 2}}\n  - {{model: {found['qwen3']}, from: 3}}\n")
    return {**found, "parts": parts}


def invoke(words: Sequence[str], models: dict[str, Path], out: Path):
    words = [
        *(word.format(**models) for word in words),
        "--text",
        str(models["text"]),
        "--out",
        str(out),
        "--overwrite",
    ]
    return CliRunner().invoke(cli.app, words)


def check_command(
    words: Sequence[str], models: dict[str, Path], place: Path, numbers: Callable[[int], Sequence[int]]
) -> None:
    """Fails the steps of a command that `numbers` chooses of so many."""
    (place / "counted").mkdir()
    with failing_disk(Disk(place / "counted")) as disk:
        done = invoke(words, models, place / "counted" / "out")
    assert done.exit_code == 0, done.stderr
    whole = sorted(content_of(place / "counted" / "out"))
    for index, number in enumerate(numbers(disk.steps)):
        out = place / str(number) / "out"
        old = old_output(out)
        with failing_disk(Disk(out.parent, number, ERRORS[index % len(ERRORS)])):
            done = invoke(words, models, out)
        if done.exit_code:
            assert done.exit_code == 1 and content_of(out) == old, (number, done.stderr)
            assert done.stderr.startswith("stitch: ") and done.stderr.count("\n") == 1, done.stderr
        else:
            assert sorted(content_of(out)) == whole, number
        shutil.rmtree(out.parent)


def test_a_conversion_whose_disk_fails_leaves_the_old_output(models: dict[str, Path], tmp_path: Path):
    check_command(COMMANDS["heads"], models, tmp_path, lambda steps: [steps // 2, steps - 3])


@pytest.mark.slow
@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_every_step_of_a_command_may_fail(words: Sequence[str], models: dict[str, Path], tmp_path: Path):
    check_command(words, models, tmp_path, lambda steps: range(1, steps + 1))
