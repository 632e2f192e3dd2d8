"""Runs a SUBLEQ program on the compiled machine."""

from collections.abc import Iterator
from typing import Any

from stitch.errors import StitchError
from stitch.synthesis.decode import Machine
from stitch.synthesis.machines.subleq import Program, frames
from stitch.synthesis.machines.subleq_tokens import HALT, NO_OUTPUT, tokens_of


def run_subleq(net: Any, description: dict, program: Program, steps: int) -> Iterator[str]:
    """After every step the counter, the changed cells and the output; then the outcome, and the whole output as text.

    Raises: UsageError when the program does not fit the checkpoint, StitchError when the output is not a memory.
    """
    cells = description["cells"]
    (before,), tokens, output = frames(program.filled(cells), 1), tokens_of(cells), bytearray()
    first_frame = [tokens.index(token) for token in before]
    machine, outcome = Machine(net, description["context"], tokens, (HALT,)), "goes on"
    yield f"{0:>6}  {before[1]}"
    for step, found in enumerate(machine.frames([0], first_frame, steps), 1):
        frame = found.tokens
        if frame[0] != NO_OUTPUT:
            output.append(int(frame[0], 16))
        if frame[-1] == HALT:
            outcome = "halts"
            break
        if len(frame) != len(before) or frame[1][0] != "@":
            raise StitchError(
                f"the model must write a memory of {cells} cells; it wrote {''.join(frame)!r}. Certify the checkpoint."
            )
        yield f"{step:>6}  {frame[1]}  {'  '.join(_changes(before, frame))}".rstrip()
        before = frame
    yield f"{outcome}; put out: {output.decode('latin-1')!r}" if output else outcome


def _changes(before: list[str], frame: list[str]) -> list[str]:
    """Cells with another value than before, and what was put out."""
    changed = [
        f"[{cell:02x}] {new}" for cell, (old, new) in enumerate(zip(before[2:], frame[2:], strict=True)) if new != old
    ]
    return [*changed, *([f"out {frame[0]}"] if frame[0] != NO_OUTPUT else [])]
