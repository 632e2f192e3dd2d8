"""Turing machines as data: from JSON, and as the text that a machine's checkpoint reads."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stitch.errors import StitchError, UsageError

STATES = "ABCDEFGHIJKLMNOP"
SYMBOLS = "01234567"
MOVES = {"L": "<", "R": ">", "S": "="}
BAR, HALT, EDGE = "|", "!", "#"
Rule = tuple[str, str, str, str, str]  # in a state, on a symbol: writes, moves, goes to a state


@dataclass(frozen=True)
class Turing:
    """A machine of named states and symbols. It halts where no rule applies. States without rules are allowed."""

    about: str
    start: str
    blank: str
    rules: tuple[Rule, ...]
    tape: str  # what it runs on if nothing else is given
    head: int  # where it stands on it

    @property
    def states(self) -> list[str]:
        return list(dict.fromkeys([self.start, *(state for rule in self.rules for state in (rule[0], rule[4]))]))

    @property
    def symbols(self) -> list[str]:
        return list(
            dict.fromkeys([self.blank, *self.tape, *(symbol for rule in self.rules for symbol in (rule[1], rule[2]))])
        )


def read_turing(path: Path) -> Turing:
    """`start`, `blank`, `rules` {state: {symbol: [write, L|R|S, state]}}; `tape`, `head` and `about` may be there.

    Raises UsageError with what is wrong.
    """
    if not path.is_file():
        raise UsageError(f"the program must be a JSON file; there is no {path}.")
    try:
        return from_description(json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once))
    except ValueError as error:
        raise StitchError(f"{path} must be JSON; {error}.") from error


def from_description(found: Mapping[str, Any]) -> Turing:
    known = {"start", "blank", "rules", "tape", "head", "about", "kind"}
    if not {"start", "blank", "rules"} <= set(found) <= known:
        raise UsageError(
            f"a Turing machine needs start, blank and rules (tape, head, about); got {', '.join(sorted(found))}."
        )
    rules = []
    for state, row in found["rules"].items():
        for symbol, rule in row.items():
            if not (isinstance(rule, list) and len(rule) == 3 and rule[1] in MOVES and len(str(rule[0])) == 1):
                raise UsageError(
                    f"a rule must be [symbol to write, L, R or S, next state]; that of ({state}, {symbol}) is {rule}."
                )
            rules.append((state, symbol, *map(str, rule)))
    return Turing(
        found.get("about", ""),
        str(found["start"]),
        str(found["blank"]),
        tuple(rules),
        found.get("tape", ""),
        found.get("head", 0),
    )


def _once(pairs: Sequence[tuple[str, Any]]) -> dict:
    names = [name for name, _ in pairs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"a state may have one rule for each symbol; {', '.join(twice)} is there twice: remove one.")
    return dict(pairs)


@dataclass(frozen=True)
class Names:
    """What a machine's states and symbols are called in the text: letters A to P and digits 0 to 7, the blank 0."""

    states: dict[str, str]
    symbols: dict[str, str]

    @classmethod
    def of(cls, machine: Turing, tape: str) -> "Names":
        """Raises UsageError for more than there are names for, or a tape of other symbols."""
        states, symbols = machine.states, machine.symbols
        if strange := sorted(set(tape) - set(symbols)):
            raise UsageError(f"the tape may hold {' '.join(symbols)}; got {', '.join(strange)}.")
        for kind, own, names in (("states", states, STATES), ("symbols", symbols, SYMBOLS)):
            if len(own) > len(names):
                raise UsageError(
                    f"the checkpoint runs machines of {len(names)} {kind} at most; this one has {len(own)}."
                )
        return cls(dict(zip(states, STATES, strict=False)), dict(zip(symbols, SYMBOLS, strict=False)))


def program_text(machine: Turing, names: Names, order: Sequence[int] | None = None) -> str:
    """Rules such as `A0B1>` (in A on 0: go to B, write 1, move right), in any order, up to the bar that the tape follows."""
    rules = [machine.rules[index] for index in (order if order is not None else range(len(machine.rules)))]
    return (
        "".join(
            names.states[state] + names.symbols[symbol] + names.states[to] + names.symbols[write] + MOVES[move]
            for state, symbol, write, move, to in rules
        )
        + BAR
    )


def frame_text(names: Names, cells: Sequence[str], head: int, state: str) -> str:
    """The tape with the state before the symbol that the head is on, and a bar: `01A10|`."""
    digits = [names.symbols[cell] for cell in cells]
    digits[head] = names.states[state] + digits[head]
    return "".join(digits) + BAR


def laid_out(machine: Turing, tape: str, window: int, head: int) -> tuple[list[str], int]:
    """The tape in the middle of the window, and where the head is. Raises UsageError where it is too long."""
    if len(tape) > window or not 0 <= head < max(len(tape), 1):
        raise UsageError(
            f"the tape must fit a window of {window} cells with the head on it; got {len(tape)} cells, head {head}."
        )
    left = (window - len(tape)) // 2
    cells = [machine.blank] * left + list(tape)
    return cells + [machine.blank] * (window - len(cells)), left + head
