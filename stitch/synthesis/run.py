"""Compiled checkpoints at work: plain greedy decoding, and what was decoded as a trace that a person can read.

Machines write one frame after another: a tape, or a memory. Where the context is full, they go on from their prompt and the last
frame, which is all that the next depends on.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from stitch.errors import StitchError, UsageError
from stitch.models.device import torch_device, torch_dtype
from stitch.synthesis import checkpoint, kinds
from stitch.synthesis.automata.automaton import Automaton
from stitch.synthesis.machines.subleq import Program, frames, read_subleq
from stitch.synthesis.machines.subleq_circuit import tokens_of
from stitch.synthesis.machines.turing import (
    BAR,
    EDGE,
    HALT,
    Names,
    Turing,
    frame_text,
    laid_out,
    program_text,
    read_turing,
)
from stitch.synthesis.machines.turing_circuit import TOKENS, ids_of


def trace(
    folder: Path, first: str, tape: str | None, *, steps: int, dtype: str = "fp32", device: str = "auto"
) -> Iterator[str]:
    """Lines of what the checkpoint does with `first`: an automaton's input, or the file of a machine's program.

    Raises: UsageError for an input or a program that the checkpoint cannot run; StitchError where it writes what is no frame.
    """
    description = kinds.described(folder)
    if tape is not None and description["kind"] != "turing":
        raise UsageError(f"only a Turing machine takes a tape; got {first!r} and {tape!r}.")
    net = checkpoint.load(folder, torch_dtype(dtype), "sdpa", str(torch_device(device)))
    match description["kind"]:
        case "turing":
            machine = read_turing(Path(first))
            lines = run_turing(net, description, machine, machine.tape if tape is None else tape, steps)
        case "subleq":
            lines = run_subleq(net, description, read_subleq(Path(first)), steps)
        case _:
            said = run_automaton(net, description, first)
            lines = iter([" ".join(f"{symbol} {word}" for symbol, word in said)])
    yield from lines


def run_automaton(net: Any, description: dict, text: str) -> list[tuple[str, str]]:
    """Every symbol of `text` and what the model says after it."""
    from stitch.synthesis.automata.stepwise import tokens_of as tokens_of_automaton
    from stitch.synthesis.tokenizer import tokenizer_of

    automaton = Automaton.from_json(description["automaton"])
    tokens = tokens_of_automaton(automaton)
    try:
        symbols = tokenizer_of(tokens)(text, add_special_tokens=False)["input_ids"]
    except Exception:  # tokenizers has no class of errors of its own
        symbols = [-1]
    if not set(symbols) <= set(range(1, 1 + len(automaton.symbols))):
        raise UsageError(f"the input may hold {' '.join(automaton.symbols)}; got {text!r}.")
    if len(symbols) > description["length"]:
        raise UsageError(
            f"the input may have {description['length']:,} symbols; got {len(symbols):,}: compile with a larger --length."
        )
    ids, found = [0], []
    for symbol in symbols:
        ids.append(symbol)
        said = _decoded(net, ids, 1)
        if description["mode"] != "parallel":
            ids += said
        found.append((tokens[symbol], tokens[said[0]]))
    return found


def run_turing(net: Any, description: dict, machine: Turing, tape: str, steps: int) -> Iterator[str]:
    """Tapes in the machine's own names, the state in brackets before the cell that the head is on; last how it ends."""
    window, context = description["window"], description["context"]
    names = Names.of(machine, tape)
    cells, head = laid_out(machine, tape, window, machine.head if tape == machine.tape else 0)
    program, frame = program_text(machine, names), frame_text(names, cells, head, machine.start)
    states = {short: own for own, short in names.states.items()}
    symbols = {short: own for own, short in names.symbols.items()}

    def readable(tokens: Sequence[str]) -> str:
        return "".join(
            f"[{states[letter]}]" if letter in states else symbols.get(letter, "") for letter in "".join(tokens)
        )

    yield f"{0:>6}  {readable(frame)}"
    for step, said in enumerate(
        _frames(net, ids_of(program), ids_of(frame)[1:], context, TOKENS, (HALT, EDGE), steps), 1
    ):
        if said[-1] in (HALT, EDGE):
            yield "halts" if said[-1] == HALT else "leaves the window"
            return
        if said[-1] != BAR:
            raise StitchError(
                f"the model must end every tape with {BAR}; it wrote {''.join(said)!r}: certify the checkpoint."
            )
        yield f"{step:>6}  {readable(said)}"
    yield "goes on"


def run_subleq(net: Any, description: dict, program: Program, steps: int) -> Iterator[str]:
    """The counter after every step, what it changed and what went out; last how it ends, and all that went out as text."""
    cells = description["cells"]
    (before,), tokens, out = frames(program.filled(cells), 1), tokens_of(cells), bytearray()
    start = [tokens.index(token) for token in before]
    ends = "goes on"
    yield f"{0:>6}  {before[1]}"
    for step, said in enumerate(_frames(net, [0], start, description["context"], tokens, (HALT,), steps), 1):
        if said[0] != ".":
            out.append(int(said[0], 16))
        if said[-1] == HALT:
            ends = "halts"
            break
        if len(said) != len(before) or said[1][0] != "@":
            raise StitchError(
                f"the model must write a memory of {cells} cells; it wrote {''.join(said)!r}: certify the checkpoint."
            )
        changed = [f"[{place:02x}] {said[2 + place]}" for place in range(cells) if said[2 + place] != before[2 + place]]
        went = [f"out {said[0]}"] if said[0] != "." else []
        yield f"{step:>6}  {said[1]}  {'  '.join([*changed, *went])}".rstrip()
        before = said
    yield f"{ends}; put out: {out.decode('latin-1')!r}" if out else ends


def _frames(
    net: Any, prompt: list[int], frame: list[int], context: int, tokens: Sequence[str], ends: Sequence[str], steps: int
) -> Iterator[list[str]]:
    """Tokens of up to `steps` frames after `frame`, each as long; the last may be shorter, and then ends with one of `ends`."""
    size, ids, done = len(frame), prompt + frame, 0
    if len(ids) + size > context:
        raise UsageError(
            f"the program and two frames of {size} tokens must fit the context of {context:,}; they take {len(ids) + size:,}: "
            "compile with a larger --context."
        )
    stop = [tokens.index(end) for end in ends]
    while done < steps:
        room = (context - len(ids)) // size
        if not room:
            ids = prompt + ids[-size:]
            continue
        said = _decoded(net, ids, min(room, steps - done) * size, stop)
        ids += said
        for start in range(0, len(said), size):
            done += 1
            yield [tokens[number] for number in said[start : start + size]]
        if said[-1] in stop:
            return


@torch.inference_mode()
def _decoded(net: Any, ids: list[int], count: int, ends: list[int] | None = None) -> list[int]:
    prompt = torch.tensor([ids], device=net.device)
    found = net.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=ends,
        pad_token_id=0,
    )
    return found[0, len(ids) :].tolist()
