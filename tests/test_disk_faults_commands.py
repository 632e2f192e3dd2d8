"""Commands on pico models whose disk fails at one step of writing: exit code 1, one line, and the old output is intact."""

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

import cli
from faults import ERRORS, Disk, content_of, failing_disk, old_output
from small_commands import COMMANDS, make_inputs, words_of


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict[str, Path]:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


def weights_of(out: Path) -> dict[str, bytes]:
    """Weights by name; of other files, which may have times in them, the names alone."""
    return {name: content if name.endswith(".safetensors") else b"" for name, content in content_of(out).items()}


def check_command(
    name: str, inputs: dict[str, Path], place: Path, numbers: Callable[[int], Sequence[int]]
) -> Counter[str]:
    """Fails the steps of a command that `numbers` chooses of so many, and counts how that ended."""
    counted = place / "counted" / "out"
    old_output(counted)
    with failing_disk(Disk(counted.parent)) as disk:
        done = CliRunner().invoke(cli.app, words_of(name, inputs, counted))
    assert done.exit_code == 0, done.stderr
    whole, found = weights_of(counted), Counter[str](steps=disk.steps)
    for index, number in enumerate(numbers(disk.steps)):
        out = place / str(number) / "out"
        old = old_output(out)
        with failing_disk(Disk(out.parent, number, ERRORS[index % len(ERRORS)])):
            done = CliRunner().invoke(cli.app, words_of(name, inputs, out))
        if done.exit_code:
            assert done.exit_code == 1 and content_of(out) == old, (number, done.stderr)
            assert done.stderr.startswith("stitch: ") and done.stderr.count("\n") == 1, done.stderr
            found["refused, old output intact"] += 1
        else:
            assert weights_of(out) == whole, number
            found["done without it"] += 1
        shutil.rmtree(out.parent)
    return found


@pytest.mark.slow
def test_a_conversion_whose_disk_fails_leaves_the_old_output(inputs: dict[str, Path], tmp_path: Path):
    check_command("heads", inputs, tmp_path, lambda steps: [steps // 2, steps - 3])


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_steps_all_over_a_command_may_fail(name: str, inputs: dict[str, Path], tmp_path: Path):
    """Ten or so; `benchmarks/disk_faults.py` tries all."""
    check_command(name, inputs, tmp_path, lambda steps: range(1, steps + 1, max(1, steps // 10)))
