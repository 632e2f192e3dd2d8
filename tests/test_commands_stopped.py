"""Ctrl-C and SIGTERM: what is done is kept, and the message names the command line that goes on."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from typer.testing import CliRunner

import cli
from jobs import gpt2_and_qwen3
from stitch.commands.errors import reported
from stitch.errors import Interrupted, Terminated

ROOT = Path(__file__).parent.parent
SMALL = ("--tokens", "4096", "--context", "32", "--device", "cpu", "-q")
JOINED = (*SMALL, "--features", "64", "--k", "8")
# Every command that keeps what is done, and some of those that keep nothing.
GO_ON = {
    "join": ("join", "{gpt2}", "{qwen3}", "--layer", "2", *JOINED),
    "the default command": ("{gpt2}", "{qwen3}", "--layer", "2", *JOINED),
    "native": ("join", "{gpt2}", "{gpt2}", "--layer", "2", "--layer-b", "4", "--native", *SMALL),
    "chain": ("chain", "{parts}", *JOINED),
    "sweep": ("sweep", "{gpt2}", "{qwen3}", *SMALL),
    "depth": ("sweep", "{gpt2}", "--depth", *SMALL),
}
BEGIN_AGAIN = {
    "heads": ("convert", "heads", "{gpt2}", "--kv-heads", "1", *SMALL),
    "ngram": ("convert", "ngram", "{gpt2}", "--drop", "1", *SMALL),
    "recurrent": ("convert", "recurrent", "{gpt2}", "--steps", "1", *SMALL),
    "automaton": ("compile", "automaton", "{machine}", "-q"),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    found = gpt2_and_qwen3(root)
    parts = root / "chain.yaml"
    parts.write_text(f"parts:\n  - {{model: {found['gpt2']}, to: 2}}\n  - {{model: {found['qwen3']}, from: 3}}\n")
    machine = root / "machine.json"
    machine.write_text('{"start": "s", "accept": ["s"], "transitions": {"s": {"a": "s"}}}')
    return {**found, "parts": parts, "machine": machine}


@pytest.fixture
def stopped(places, monkeypatch):
    """Runs a command that is stopped as soon as it works in its workspace."""

    def start(words: Sequence[str], out: Path, stop: type[BaseException] = KeyboardInterrupt):
        def now(*_, **__):
            raise stop

        monkeypatch.setattr("stitch.files.job.shutil", SimpleNamespace(rmtree=now))
        text = [] if words[0] == "compile" else ["--text", "{text}"]
        return CliRunner().invoke(
            cli.app, [str(word).format(**places) for word in (*words, *text)] + ["--out", str(out)]
        )

    return start


def command_in(stderr: str) -> list[str]:
    """The command line that the message names, after `stitch`."""
    *_, line = stderr.splitlines()
    said, _, words = line.partition("To go on: ")
    assert said == "stitch: stopped; what is done is kept. ", stderr
    program, *words = shlex.split(words)
    assert program == "stitch"
    return words


@pytest.mark.parametrize("words", GO_ON.values(), ids=GO_ON)
def test_the_message_names_a_command_that_goes_on(words: Sequence[str], stopped, tmp_path: Path):
    done = stopped(words, tmp_path / "my out")
    assert done.exit_code == 130, done.stderr
    (tmp_path / ".my out.partial" / "shard").write_text("x")
    again = command_in(done.stderr)
    assert again[-1] == "--resume" and str(tmp_path / "my out") in again
    twice = CliRunner().invoke(cli.app, again)  # it exists, finds the work, and is stopped at the same place
    assert twice.exit_code == 130 and command_in(twice.stderr) == again
    assert (tmp_path / ".my out.partial" / "shard").exists()


@pytest.mark.parametrize("words", BEGIN_AGAIN.values(), ids=BEGIN_AGAIN)
def test_a_command_that_keeps_nothing_says_so(words: Sequence[str], stopped, tmp_path: Path):
    done = stopped(words, tmp_path / "out", Terminated)
    assert done.exit_code == 143, done.stderr
    assert done.stderr.splitlines()[-1] == "stitch: stopped; nothing is kept, the same command begins again."
    assert not list(tmp_path.iterdir())


def test_restart_is_not_part_of_the_command_that_goes_on(stopped, tmp_path: Path):
    stopped(GO_ON["native"], tmp_path / "out")
    done = stopped((*GO_ON["native"], "--restart", "--overwrite"), tmp_path / "out")
    assert "--restart" not in (again := command_in(done.stderr)) and "--overwrite" in again


RESUME = SimpleNamespace(name="resume", opts=["--resume"], param_type_name="option")


@pytest.mark.parametrize(
    "stop, params, code, said",
    [
        (KeyboardInterrupt(), [RESUME], 130, "stopped before anything was kept."),
        (Terminated(), [RESUME], 143, "stopped before anything was kept."),
        (Interrupted(Path("x")), [RESUME], 130, "To go on: stitch join --resume"),
        (Terminated(Path("x")), [RESUME], 143, "To go on: stitch join --resume"),
        (KeyboardInterrupt(), [], 130, "stopped.\n"),
    ],
)
def test_what_is_said_and_the_exit_code(stop, params, code, said, capsys):
    with pytest.raises(typer.Exit) as found, reported(params, debug=True, words=["join"]):
        raise stop
    assert found.value.exit_code == code and said in capsys.readouterr().err


WAITING = """
import signal, sys, time, stitch, cli
from stitch.files.workspace import workspace

def join(*arguments, out, **options):
    with workspace(out, "join", {"seed": 0}):
        print("works", flush=True)
        time.sleep(60)

signal.signal(signal.SIGINT, signal.default_int_handler)  # processes of a shell's background are started without
stitch.join = join
sys.argv = ["stitch", "a", "b", "--layer", "1", "--out", sys.argv[1]]
cli.main()
"""


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_process_with_its_exit_code(number: int, code: int, tmp_path: Path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", WAITING, str(tmp_path / "out")],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout and process.stderr and process.stdout.readline() == "works\n"
        process.send_signal(number)
        stderr = process.stderr.read()
    assert process.returncode == code
    assert command_in(stderr) == ["a", "b", "--layer", "1", "--out", str(tmp_path / "out"), "--resume"]
    assert (tmp_path / ".out.partial" / "request.json").exists()
