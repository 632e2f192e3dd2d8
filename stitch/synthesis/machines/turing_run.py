"""Runs a Turing machine on the compiled universal machine."""

from collections.abc import Iterator, Sequence
from typing import Any

from stitch.errors import StitchError
from stitch.synthesis.decode import Machine
from stitch.synthesis.machines.turing import BAR, EDGE, HALT, Names, Turing, frame_text, laid_out, program_text
from stitch.synthesis.machines.turing_circuit import TOKENS, ids_of


def run_turing(net: Any, description: dict, machine: Turing, tape: str, steps: int) -> Iterator[str]:
    """The tape after every step, in the machine's own names, with the state in brackets before the head's cell; then the outcome.

    Raises: UsageError when the machine does not fit the checkpoint, StitchError when the output is not a tape.
    """
    names = Names.of(machine, tape)
    head = machine.head if tape == machine.tape else 0
    cells, head = laid_out(machine, tape, description["window"], head)
    program, frame = program_text(machine, names), frame_text(names, cells, head, machine.start)
    compiled = Machine(net, description["context"], TOKENS, (HALT, EDGE))

    yield f"{0:>6}  {_readable(frame, names)}"
    for step, found in enumerate(compiled.frames(ids_of(program), ids_of(frame)[1:], steps), 1):
        tokens = found.tokens
        if tokens[-1] in (HALT, EDGE):
            yield "halts" if tokens[-1] == HALT else "leaves the window"
            return
        if tokens[-1] != BAR:
            raise StitchError(
                f"the model must end every tape with {BAR}; it wrote {''.join(tokens)!r}. Certify the checkpoint."
            )
        yield f"{step:>6}  {_readable(tokens, names)}"
    yield "goes on"


def _readable(tokens: Sequence[str], names: Names) -> str:
    """A frame in the machine's own names, without its bar."""
    states = {letter: state for state, letter in names.states.items()}
    symbols = {digit: symbol for symbol, digit in names.symbols.items()}
    return "".join(f"[{states[letter]}]" if letter in states else symbols.get(letter, "") for letter in "".join(tokens))
