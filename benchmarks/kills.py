"""Commands killed by SIGKILL at random times, and then made again: do they end with the same bytes?

One JSON line per command: at so many times, drawn evenly over its duration, what stood at `--out` right after the kill (the old
output, the new one whole, or something else) and whether the same command, with `--resume` where it has that, then ended with the
bytes of a run that nothing stopped. Models are the pico models of the tests. Every process is forked from one that has imported
what it needs, so that the times fall into the work. Half of the runs keep activations and SAEs in a cache, half do not.
"""

import argparse
import importlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.append(
    str(Path(__file__).resolve().parent.parent / "tests")
)  # pico models and commands are those of the tests

from faults import content_of, old_output
from small_commands import COMMANDS, RESUMED, make_inputs, words_of

IMPORTED = (
    "cli",
    "torch",
    "transformers",
    "sae_lens",
    "scipy.optimize",
    "safetensors.torch",
    "stitch.jobs.chain",
    "stitch.jobs.sweep",
)
CACHED = ("join", "chain", "sweep", "depth", "native")
LEFT_OUT = ("seconds", "cache")  # of a report: what a resumed run took, and found in the cache


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=100)
    parser.add_argument("--only", action="append", choices=COMMANDS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # a forked process has no thread pool
    for name in IMPORTED:
        importlib.import_module(name)
    importlib.import_module("torch").set_num_threads(1)
    warnings.simplefilter("ignore", DeprecationWarning)
    with tempfile.TemporaryDirectory() as folder:
        inputs = make_inputs(Path(folder))
        for name in options.only or COMMANDS:
            print(json.dumps(kill(name, inputs, Path(folder) / name, options.points, options.seed)), flush=True)


def kill(name: str, inputs: dict[str, Path], place: Path, points: int, seed: int) -> dict:
    """Kills a command at `points` times, makes it again after each, and counts what is found."""
    whole = place / "whole" / "out"
    old_output(whole)
    start = time.monotonic()
    if (status := ended(started(name, inputs, whole, cache=False, resume=False))) != 0:
        raise SystemExit(f"{name} ends with {status} without being killed")
    duration, expected = time.monotonic() - start, bytes_of(whole)
    draws, found = random.Random(seed), Counter[str]()
    for number in range(points):
        out, cache = place / str(number) / "out", bool(number % 2) and name in CACHED
        old = old_output(out)
        process = started(name, inputs, out, cache=cache, resume=False)
        time.sleep(draws.uniform(0, duration))
        os.kill(process, signal.SIGKILL)
        found["killed" if ended(process) == -signal.SIGKILL else "had ended"] += 1
        found[left(out, old, expected)] += 1
        status = ended(started(name, inputs, out, cache=cache, resume=name in RESUMED))
        found["same bytes" if status == 0 and bytes_of(out) == expected else f"other bytes, exit {status}"] += 1
        found["nothing beside it"] += [path.name for path in out.parent.iterdir() if path.name != "cache"] == ["out"]
    return {
        "benchmark": "kills", "command": name, "points": points, "seed": seed, "resumed": name in RESUMED,
        "duration_seconds": round(duration, 1), **found,
    }  # fmt: skip


def started(name: str, inputs: dict[str, Path], out: Path, *, cache: bool, resume: bool) -> int:
    """Forks a process that runs the command, and returns its number."""
    if (process := os.fork()) != 0:
        return process
    status = 70
    try:
        os.environ["STITCH_CACHE"] = str(out.parent / "cache")
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        words = [*words_of(name, inputs, out), *(["--resume"] if resume else [])]
        words += [] if cache or name not in CACHED else ["--cache-size", "0"]
        status = run(words)
    finally:
        os._exit(status)


def run(words: Sequence[str]) -> int:
    import cli

    try:
        cli.app(list(words), prog_name="stitch")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def ended(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def left(out: Path, old: dict[str, bytes], new: dict[str, bytes]) -> str:
    """What stands at `out` after a kill."""
    if content_of(out) == old:
        return "old output"
    try:
        return "new output" if bytes_of(out) == new else "neither"
    except (KeyError, ValueError):
        return "neither"


def bytes_of(out: Path) -> dict[str, bytes]:
    """Every file's bytes; of a report all but LEFT_OUT."""
    found = content_of(out)
    report = json.loads(found.pop("report.json"))
    return {**found, "report.json": json.dumps(without(report), sort_keys=True).encode()}


def without(value: object) -> object:
    if isinstance(value, dict):
        return {key: without(inner) for key, inner in value.items() if key not in LEFT_OUT}
    return [without(inner) for inner in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main()
