"""Runs compiled checkpoints by greedy decoding and yields a readable trace."""

from collections.abc import Iterator
from pathlib import Path

from stitch.errors import UsageError
from stitch.models.device import torch_device, torch_dtype
from stitch.synthesis import checkpoint
from stitch.synthesis.automata.run import run_automaton
from stitch.synthesis.bounds import MOST_STEPS, within
from stitch.synthesis.description import described
from stitch.synthesis.machines.subleq import read_subleq
from stitch.synthesis.machines.subleq_run import run_subleq
from stitch.synthesis.machines.turing import read_turing
from stitch.synthesis.machines.turing_run import run_turing


def trace(
    folder: Path, first: str, tape: str | None, *, steps: int, dtype: str = "fp32", device: str = "auto"
) -> Iterator[str]:
    """Lines of a run of the checkpoint on `first`: an automaton's input, or the path of a machine's program.

    Raises: UsageError for an input or a program that the checkpoint cannot run, StitchError when its output is not a frame.
    """
    within("steps", steps, 1, MOST_STEPS)
    description = described(folder)
    if tape is not None and description["kind"] != "turing":
        raise UsageError(f"tape may be given for Turing machines only; got {tape!r} for kind {description['kind']}.")
    net = checkpoint.load(folder, torch_dtype(dtype), "sdpa", str(torch_device(device)))
    match description["kind"]:
        case "turing":
            machine = read_turing(Path(first))
            lines = run_turing(net, description, machine, machine.tape if tape is None else tape, steps)
        case "subleq":
            lines = run_subleq(net, description, read_subleq(Path(first)), steps)
        case _:
            pairs = run_automaton(net, description, first)
            lines = iter([" ".join(f"{symbol} {output}" for symbol, output in pairs)])
    yield from lines
