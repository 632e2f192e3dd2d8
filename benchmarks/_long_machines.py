"""Machines that run for a million tokens in little space, for `long_trace.py`."""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

from stitch.synthesis import interpreters
from stitch.synthesis.machines.subleq import OUTPUT, frames
from stitch.synthesis.machines.subleq_tokens import tokens_of
from stitch.synthesis.machines.turing import (
    EDGE,
    HALT,
    STATES,
    SYMBOLS,
    Names,
    frame_text,
    from_description,
    laid_out,
    program_text,
)
from stitch.synthesis.machines.turing_circuit import TOKENS, ids_of

WALLS = SYMBOLS[6:]  # the symbols at both ends of the tape of `between_walls`


@dataclass(frozen=True)
class Long:
    """A machine and its checkpoint, as described in `synthesis.json`.

    prompt, frame  token ids of its rules and of its first frame.
    expected       the frames after the first, as tokens, from the reference interpreter.
    """

    description: dict
    prompt: list[int]
    frame: list[int]
    tokens: tuple[str, ...]
    ends: tuple[str, ...]
    expected: Iterator[list[str]]


def counter(window: int = 32, context: int = 2_048) -> Long:
    """A binary counter: carries run to the left, and the mark `e` behind the lowest digit sends the head back."""
    rules = {
        "carry": {"0": ["1", "R", "back"], "1": ["0", "L", "carry"]},
        "back": {"0": ["0", "R", "back"], "e": ["e", "L", "carry"]},
    }
    tape = "0" * (window - 1) + "e"
    return _turing({"start": "carry", "blank": "0", "rules": rules, "tape": tape, "head": window - 2}, window, context)


def busy_beaver_5(window: int = 160, context: int = 1_024) -> Long:
    """The champion of five states and two symbols (Marxen & Buntrock 1990), for as long as its tape fits the window."""
    rules = {
        "A": {"0": ["1", "R", "B"], "1": ["1", "L", "C"]},
        "B": {"0": ["1", "R", "C"], "1": ["1", "R", "B"]},
        "C": {"0": ["1", "R", "D"], "1": ["0", "L", "E"]},
        "D": {"0": ["1", "L", "A"], "1": ["1", "L", "D"]},
        "E": {"0": ["1", "R", "H"], "1": ["0", "L", "A"]},
    }
    return _turing(
        {"start": "A", "blank": "0", "rules": rules, "tape": "0" * window, "head": window - 20}, window, context
    )


def between_walls(window: int = 32, context: int = 2_048, seed: int = 132) -> Long:
    """A random machine with all 128 rules of 16 states and 8 symbols; symbols 6 and 7 are walls that send the head back.

    With this seed it does not come back to an earlier tape in 31,000 steps, and uses 126 of its rules.
    """
    generator, inside = random.Random(seed), SYMBOLS[:6]
    rules: dict[str, dict] = {}
    for state in STATES:
        rules[state] = {
            symbol: [generator.choice(inside), generator.choice("LR"), generator.choice(STATES)] for symbol in inside
        }
        for wall, move in zip(WALLS, "RL", strict=True):
            rules[state][wall] = [wall, move, generator.choice(STATES)]
    tape = WALLS[0] + "".join(generator.choices(inside, k=window - 2)) + WALLS[1]
    return _turing({"start": "A", "blank": "0", "rules": rules, "tape": tape, "head": window // 2}, window, context)


def primes(cells: int = 50, context: int = 512) -> Long:
    """A SUBLEQ program that puts out the primes, found by trial division."""
    z, n, d, r, minus = range(
        45, 50
    )  # addresses of 0, the number, the divisor, the remainder and −1, behind the program
    program = [  # a, b, and the instruction to continue at when the difference is 0 or less
        (minus, n, 1), (d, d, 2), (minus, d, 3),  # the next number; divisors from 2 on
        (minus, d, 4), (r, r, 5), (n, z, 6), (z, r, 7), (z, z, 8), (d, r, 13),  # the remainder begins with n − d
        (d, r, 11), (z, z, 9),  # d is subtracted until the remainder is 0 or less
        (minus, r, 3), (z, z, 0),  # the next divisor, or the next number if d divides n
        (n, OUTPUT, 14), (z, z, 0),
    ]  # fmt: skip
    memory = [cell for a, b, to in program for cell in (a, b, 3 * to)] + [0, 1, 0, 0, 255]
    first, *later = frames(memory, 20_001)
    tokens = tokens_of(cells)
    description = {"kind": "subleq", "arch": "gpt2", "cells": cells, "context": context}
    return Long(description, [0], [tokens.index(token) for token in first], tokens, (HALT,), iter(later))


MACHINES = {
    "binary counter": counter,
    "busy beaver of 5 states": busy_beaver_5,
    "random machine, 128 rules": between_walls,
    "primes in SUBLEQ": primes,
}


def _turing(found: dict, window: int, context: int) -> Long:
    machine = from_description(found)
    names = Names.of(machine, machine.tape)
    cells, head = laid_out(machine, machine.tape, window, machine.head)

    def expected() -> Iterator[list[str]]:
        for state, tape, place in itertools.islice(
            interpreters.run(machine.rules, machine.start, cells, head), 1, None
        ):
            if state in ("halt", "edge"):  # the busy beaver leaves its window after 1,051,330 tokens
                return
            yield [TOKENS[number] for number in ids_of(frame_text(names, tape, place, state))[1:]]

    prompt = ids_of(program_text(machine, names))
    first = ids_of(frame_text(names, cells, head, machine.start))[1:]
    description = {"kind": "turing", "arch": "llama", "window": window, "context": context}
    return Long(description, prompt, first, TOKENS, (HALT, EDGE), expected())
