"""Work killed by SIGKILL at random times, and then done again: does it end with the same bytes?

One JSON line per kind of work, a command or the training of two SAEs: at so many times, drawn evenly over its duration, what
stood at the output right after the kill (the old output, the new one whole, or something else), and whether the same work, with
`--resume` where the command has it, then ended with the bytes of a run that nothing stopped. Models are the pico models of the
tests; `push` uploads to the tests' stand-in for the Hub. Every process is forked from one that has imported what it needs, so
that the times fall into the work. Half of the runs of a command with a cache have one.
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
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

sys.path.append(
    str(Path(__file__).resolve().parent.parent / "tests")
)  # pico models and commands are those of the tests

from faults import content_of, old_output
from hub_double import HubDouble
from small_commands import COMMANDS, RESUMED, make_inputs, words_of

IMPORTED = (
    *("cli", "torch", "transformers", "sae_lens", "scipy.optimize", "safetensors.torch", "huggingface_hub"),
    *("sae.trainer", "stitch.models.hub", "stitch.jobs.chain", "stitch.jobs.sweep"),
)
CACHED = ("join", "chain", "sweep", "depth", "native")  # commands that keep activations and SAEs
LEFT_OUT = ("seconds", "cache")  # of a report: what a resumed run took, and found in the cache
REPO = "user/model"
Bytes = dict[str, bytes]


@dataclass(frozen=True)
class Work:
    """`run(place, number, again)` does the work in a forked process; `again` after a kill. `prepare(place)` makes the old output,
    `look(place)` returns what is there."""

    run: Callable[[Path, int, bool], None]
    look: Callable[[Path], Bytes]
    prepare: Callable[[Path], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=100)
    parser.add_argument("--only", action="append", choices=[*COMMANDS, "SAE training", "push"])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        hub = stack.enter_context(HubDouble(folder / "hub"))
        os.environ["OMP_NUM_THREADS"] = "1"  # a forked process has no thread pool
        for name in IMPORTED:
            importlib.import_module(name)
        importlib.import_module("torch").set_num_threads(1)
        warnings.simplefilter("ignore", DeprecationWarning)
        for name, work in works(make_inputs(folder), hub, folder):
            if name in (options.only or [name]):
                found = kill(work, folder / name.replace(" ", "-"), options.points, random.Random(options.seed))
                again = "resumed" if name in RESUMED or name == "SAE training" else "from the start"
                line = {
                    "benchmark": "kills",
                    "work": name,
                    "points": options.points,
                    "seed": options.seed,
                    "again": again,
                }
                print(json.dumps({**line, **found}), flush=True)


def works(inputs: dict[str, Path], hub: HubDouble, folder: Path) -> Iterator[tuple[str, Work]]:
    for name in COMMANDS:
        yield name, command(name, inputs)
    yield "SAE training", Work(run=train, look=lambda place: content_of(place / "out"), prepare=lambda place: None)
    pushed = folder / "pushed"
    if forked(lambda: invoke([*words_of("native", inputs, pushed), "--cache-size", "0"])):
        raise SystemExit("there is nothing to push")
    yield "push", push(pushed, hub)


def command(name: str, inputs: dict[str, Path]) -> Work:
    def run(place: Path, number: int, again: bool) -> None:
        os.environ["STITCH_CACHE"] = str(place / "cache")
        words = [*words_of(name, inputs, place / "out"), *(["--resume"] if again and name in RESUMED else [])]
        invoke([*words, "--cache-size", "0"] if name in CACHED and number % 2 else words)

    def prepare(place: Path) -> None:
        old_output(place / "out")

    def look(place: Path) -> Bytes:
        found = content_of(place / "out")
        beside = [path.name for path in place.iterdir() if path.name not in ("cache", "out", ".out.partial")]
        return {**found, "report.json": _comparable(found.get("report.json", b"")), "beside it": repr(beside).encode()}

    return Work(run, look, prepare)


def train(place: Path, number: int, again: bool) -> None:
    """Two small SAEs, with a snapshot every five steps."""
    import torch

    from sae.config import SAEConfig
    from sae.storage import save
    from sae.trainer import train_sites

    def batches(start: int) -> Iterator[dict[str, torch.Tensor]]:
        for step in range(start, 200):
            drawn = torch.Generator().manual_seed(step)
            yield {"a": torch.randn(256, 64, generator=drawn), "b": torch.randn(256, 48, generator=drawn)}

    config = SAEConfig(features=512, k=8, lr=1e-3, steps=200, batch_size=256)
    widths = {"a": 64, "b": 48}
    trained = train_sites({"a": config, "b": config}, widths, batches, snapshots=place / "snapshots", snapshot_every=5)
    for site, sae in trained.items():
        if not (place / "out" / site).exists():
            save(sae, place / "out" / site, {})


def push(folder: Path, hub: HubDouble) -> Work:
    def run(place: Path, number: int, again: bool) -> None:
        from stitch.models.hub import push

        push(folder, REPO, token=hub.token, endpoint=hub.url)

    def prepare(place: Path) -> None:
        hub.repositories.pop(REPO, None)
        hub.uploads.clear()
        hub.add(REPO, {"config.json": b"{}", "model.safetensors": b"old"})

    return Work(run, lambda place: hub.files(REPO), prepare)


def kill(work: Work, place: Path, points: int, draws: random.Random) -> dict:
    """Kills the work at `points` times, does it again after each, and counts what is found."""
    durations: list[float] = []
    for whole in (place / "first", place / "second", place / "third"):  # the shortest was not held up by anything
        whole.mkdir(parents=True)
        prepare(work, whole)
        start = time.monotonic()
        if status := forked(lambda whole=whole: work.run(whole, 1, False)):
            raise SystemExit(f"the work ends with {status} without being killed")
        durations.append(time.monotonic() - start)
        expected = work.look(whole)
    duration, found = min(durations), Counter[str]()
    for number in range(points):
        here = place / str(number)
        here.mkdir()
        old = prepare(work, here)
        status = forked(lambda here=here, number=number: work.run(here, number, False), draws.uniform(0, duration))
        found["killed" if status == -signal.SIGKILL else "had ended"] += 1
        there = work.look(here)
        found["old output" if there == old else "new output" if there == expected else "something else"] += 1
        status = forked(lambda here=here, number=number: work.run(here, number, True))
        found["same bytes" if status == 0 and work.look(here) == expected else f"other bytes, exit {status}"] += 1
    return {"duration_seconds": round(duration, 1), **found}


def prepare(work: Work, place: Path) -> Bytes:
    work.prepare(place)
    return work.look(place)


def forked(run: Callable[[], None], kill_after: float | None = None) -> int:
    """The exit status of a forked process that runs this in silence, or −9 where it had to be killed."""
    if (process := os.fork()) == 0:
        status = 70
        try:
            for stream in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
            run()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        finally:
            os._exit(status)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def invoke(words: list[str]) -> None:
    import cli

    cli.app(words, prog_name="stitch")


def _comparable(report: bytes) -> bytes:
    try:
        return json.dumps(_without(json.loads(report)), sort_keys=True).encode()
    except ValueError:
        return report


def _without(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without(inner) for key, inner in value.items() if key not in LEFT_OUT}
    return [_without(inner) for inner in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main()
