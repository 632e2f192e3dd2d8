"""The same everywhere: locales, closed streams, names, folders that cannot be written, threads.

Each test runs a command in a process of its own, and compares with one that ran in this process.
"""

import json
import os
import stat
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from typer.testing import CliRunner

import cli
from jobs import gpt2_and_qwen3

ROOT = Path(__file__).parent.parent
ODD = 'a b\'s "q"\nü #%{x} [1] 名'
PLAIN_C = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
MODULE = ["-m", "cli"]
EVALUATE = ("eval", "gpt2", "--text", "text.jsonl", "--tokens", "512", "--context", "32")


@dataclass(frozen=True)
class Place:
    """Where a command runs: two pico models, a text, and variables of the environment; None: not there."""

    folder: Path
    variables: dict[str, str | None] = field(default_factory=dict)

    def run(self, *words: str, python: list[str] = MODULE, shell: str = '"$@"', **variables: str | None):
        """`shell` is the line of a shell in which "$@" are the words of the command."""
        merged = {**os.environ, **self.variables, **variables}
        return subprocess.run(
            ["sh", "-c", shell, "sh", sys.executable, *python, *words],
            env={name: value for name, value in merged.items() if value is not None},
            capture_output=True,
            cwd=self.folder,
        )

    def evaluate(self, **how):
        return self.run(*EVALUATE, **how)

    def convert(self, out: str, **how) -> dict[str, bytes]:
        """What is in the new folder, by name."""
        words = ["--kv-heads", "1", "--text", "text.jsonl", "--tokens", "4096", "--context", "32", "--device", "cpu"]
        done = self.run("convert", "heads", "gpt2", *words, "--out", out, **how)
        assert done.returncode == 0, done.stderr
        return {path.name: path.read_bytes() for path in (self.folder / out).iterdir()}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    folder = tmp_path_factory.mktemp("place") / ODD
    folder.mkdir()
    gpt2_and_qwen3(folder)
    return Place(folder, {"PYTHONPATH": str(ROOT), "STITCH_CACHE": str(folder / "cache"), "LANG": "C.UTF-8"})


@pytest.fixture(scope="module")
def row(place) -> str:
    """The last line of an evaluation, in a folder whose name has about everything that a name may have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place.folder)
        done = CliRunner().invoke(cli.app, EVALUATE)
    assert done.exit_code == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_a_bare_environment_gives_the_same_numbers(place, row):
    bare = {"LANG": None, "HOME": None, "TERM": "dumb", "NO_COLOR": "1", "COLUMNS": "20", "TMPDIR": "/absent"}
    done = place.evaluate(shell='"$@" <&-', **bare, **PLAIN_C)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode("ascii").splitlines()[-1] == row.replace("–", "?")


@pytest.mark.slow
def test_an_isolated_python_gives_the_same_numbers(place, row):
    entry = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from cli import main; main()"
    done = place.evaluate(python=["-I", "-c", entry])
    assert done.stdout.decode().splitlines()[-1] == row, done.stderr


@pytest.mark.parametrize("words", [("cache", "list"), pytest.param(EVALUATE, marks=pytest.mark.slow)])
def test_closed_streams_are_no_reason_to_fail(place, words):
    done = place.run(*words, shell='"$@" >&- 2>&- <&-')
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert place.run("inspect", "absent.gguf", shell='"$@" >&- 2>&-').returncode == 2


PRINTING = [
    (("--version",), {"PYTHONUNBUFFERED": None}),
    (("--version",), {"PYTHONUNBUFFERED": "1"}),
    (("cache", "list", "--help"), {}),
    (("cache", "list", "--json"), {"PYTHONUNBUFFERED": None}),
]


@pytest.mark.parametrize(("words", "variables"), PRINTING)
def test_output_that_nobody_reads_ends_the_command_quietly(place, words, variables):
    done = place.run(*words, shell='"$@" | true', **variables)
    assert done.stderr == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize(("words", "variables"), PRINTING)
def test_output_that_finds_no_room_is_said_in_one_line(place, words, variables):
    done = place.run(*words, shell='"$@" > /dev/full', **variables)
    assert done.returncode == 1
    assert done.stderr == b"stitch: standard output cannot be written: No space left on device\n"


@pytest.mark.parametrize("name", ["ü".encode(), b"\xff"])
def test_a_name_that_cannot_be_passed_on_is_refused(place, name):
    done = place.run("inspect", os.fsdecode(name), **(PLAIN_C if name != b"\xff" else {}))
    assert done.returncode == 2 and done.stderr.startswith(b"stitch: file names and options must be UTF-8; got '")
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("columns", ["1", "20"])
def test_help_fits_any_width(place, columns):
    done = place.run("cache", "list", "--help", COLUMNS=columns)
    assert done.returncode == 0 and b"--json" in done.stdout


FILE = str(ROOT / "cli.py")  # where a folder is needed


@pytest.mark.parametrize("variables", [{"STITCH_CACHE": FILE}, {"STITCH_CACHE": None, "HOME": FILE}])
def test_a_cache_that_cannot_be_is_empty(place, variables):
    done = place.run("cache", "list", "--json", **variables)
    assert done.returncode == 0 and json.loads(done.stdout) == [], done.stderr


@pytest.mark.slow
def test_what_is_written_is_the_same_everywhere(place, tmp_path):
    """Also where neither the home nor the cache can be written, and nothing is a temporary folder."""
    first = place.convert("first")
    full = dict.fromkeys(["HOME", "STITCH_CACHE", "TMPDIR"], FILE)
    assert place.convert("f\"i'r\nst", python=["-O", *MODULE], LANG=None, TERM="dumb", **PLAIN_C, **full) == first


@pytest.mark.slow
@pytest.mark.parametrize("threads", ["2", "4"])
def test_the_same_number_of_threads_gives_the_same_bytes(place, threads):
    """As docs/findings/repeatability.md says of the main job."""
    variables = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
    assert place.convert(f"{threads}-once", **variables) == place.convert(f"{threads}-again", **variables)


@pytest.mark.slow
@pytest.mark.parametrize("mask, mode", [("022", 0o644), ("077", 0o600)])
def test_files_may_be_read_by_whom_the_umask_lets_read(place, mask, mode):
    place.convert(f"mask-{mask}", shell=f'umask {mask}; "$@"')
    assert {stat.S_IMODE(path.stat().st_mode) for path in (place.folder / f"mask-{mask}").iterdir()} == {mode}
