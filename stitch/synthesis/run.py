"""Compiled checkpoints at work: plain greedy decoding, and what was decoded as a trace that a person can read."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from stitch.config import torch_device, torch_dtype
from stitch.errors import StitchError, UsageError
from stitch.synthesis import checkpoint, kinds
from stitch.synthesis.automaton import Automaton
from stitch.synthesis.machine import ID, TOKENS, ids_of
from stitch.synthesis.turing import BAR, EDGE, HALT, Names, Turing, frame_text, laid_out, program_text, read_turing


def trace(
    folder: Path, first: str, tape: str | None, *, steps: int, dtype: str = "fp32", device: str = "auto"
) -> Iterator[str]:
    """Lines of what `run_automaton` or `run_turing` finds, whichever the folder is for."""
    if kinds.described(folder)["kind"] == "automaton":
        if tape is not None:
            raise UsageError(f"an automaton reads one input; got {first!r} and {tape!r}.")
        said = list(run_automaton(folder, first, dtype=dtype, device=device))
        yield " ".join(f"{symbol} {word}" for symbol, word in said)
        return
    machine = read_turing(Path(first))
    lines = run_turing(folder, machine, machine.tape if tape is None else tape, steps=steps, dtype=dtype, device=device)
    for number, line in enumerate(lines):
        yield f"{number:>6}  {line}" if "[" in line else line


def run_automaton(folder: Path, text: str, *, dtype: str = "fp32", device: str = "auto") -> Iterator[tuple[str, str]]:
    """Every symbol of `text` and what the model says after it. Raises UsageError for other symbols or a text that is too long."""
    from transformers import AutoTokenizer

    description = kinds.described(folder)
    automaton, parallel = Automaton.from_json(description["automaton"]), description["mode"] == "parallel"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    symbols = [tokenizer.convert_ids_to_tokens(number) for number in _encoded(tokenizer, text, automaton)]
    if len(symbols) > description["length"]:
        raise UsageError(f"the input may have {description['length']:,} symbols; got {len(symbols):,}: compile with a larger --length.")
    net, ids = _net(folder, dtype, device), [0]
    for symbol in symbols:
        ids.append(tokenizer.convert_tokens_to_ids(symbol))
        said = _next(net, ids, 1)
        if not parallel:
            ids += said
        yield symbol, tokenizer.convert_ids_to_tokens(said[0])


def _encoded(tokenizer: Any, text: str, automaton: Automaton) -> list[int]:
    try:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    except Exception:
        ids = [-1]
    if not set(ids) <= set(range(1, 1 + len(automaton.symbols))):
        raise UsageError(f"the input may hold {' '.join(automaton.symbols)}; got {text!r}.")
    return ids


def run_turing(
    folder: Path,
    machine: Turing,
    tape: str,
    *,
    steps: int = 10_000,
    dtype: str = "fp32",
    device: str = "auto",
) -> Iterator[str]:
    """Tapes one after another, decoded greedily, in the machine's own names; the last is `halts`, `leaves the window` or `goes on`
    after `steps`. Where the context is full, the model goes on from the rules and the last tape.

    Raises: UsageError for a program or tape that is too large; StitchError where the model writes what is no tape.
    """
    description = kinds.described(folder)
    window, context = description["window"], description["context"]
    names = Names.of(machine, tape)
    cells, head = laid_out(machine, tape, window, machine.head if tape == machine.tape else 0)
    program, frame = program_text(machine, names), frame_text(names, cells, head, machine.start)
    if len(ids_of(program)) + 2 * (window + 1) > context:
        raise UsageError(f"rules and two tapes must fit {context:,} tokens; {len(machine.rules)} rules don't: compile with a larger --context.")
    net, prompt, done = _net(folder, dtype, device), ids_of(program), 0
    ids = prompt + ids_of(frame)[1:]
    yield _readable(frame, machine, names)
    while done < steps:
        count = (context - len(ids)) // (window + 1)
        if count < 1:
            ids = prompt + ids[-(window + 1) :]
            continue
        said = _next(net, ids, min(count, steps - done) * (window + 1), [ID[HALT], ID[EDGE]])
        ids += said
        lines = "".join(TOKENS[number] for number in said)
        for line in lines.split(BAR)[:-1]:
            done += 1
            yield _readable(line + BAR, machine, names)
        if lines[-1] in (HALT, EDGE):
            yield "halts" if lines[-1] == HALT else "leaves the window"
            return
        if lines[-1] != BAR or (len(said) % (window + 1)):
            raise StitchError(f"the model must end every tape with {BAR}; it wrote {lines[-40:]!r}: certify the checkpoint.")
    yield "goes on"


def _readable(line: str, machine: Turing, names: Names) -> str:
    """In the machine's own names, the state in brackets before its cell."""
    states = {short: own for own, short in names.states.items()}
    symbols = {short: own for own, short in names.symbols.items()}
    return "".join(f"[{states[letter]}]" if letter in states else symbols.get(letter, "") for letter in line)


def _net(folder: Path, dtype: str, device: str) -> Any:
    return checkpoint.load(folder, torch_dtype(dtype), "sdpa", str(torch_device(device)))


@torch.inference_mode()
def _next(net: Any, ids: list[int], count: int, ends: list[int] | None = None) -> list[int]:
    prompt = torch.tensor([ids], device=net.device)
    found = net.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=count, do_sample=False, eos_token_id=ends, pad_token_id=0
    )
    return found[0, len(ids) :].tolist()
