"""Turing machines: read from JSON, and as the text that the universal machine's checkpoint reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stitch.errors import UsageError
from stitch.synthesis.json_file import read_json

STATES = "ABCDEFGHIJKLMNOP"
SYMBOLS = "01234567"
MOVES = {"L": "<", "R": ">", "S": "="}
BAR, HALT, EDGE = "|", "!", "#"
Rule = tuple[str, str, str, str, str]  # (state, symbol, symbol to write, move, next state)


@dataclass(frozen=True)
class Turing:
    """A machine with named states and symbols. It halts where no rule applies; states without rules are allowed."""

    about: str
    start: str
    blank: str
    rules: tuple[Rule, ...]
    tape: str  # the default tape
    head: int  # the head's position on it

    @property
    def states(self) -> list[str]:
        return list(dict.fromkeys([self.start, *(state for rule in self.rules for state in (rule[0], rule[4]))]))

    @property
    def symbols(self) -> list[str]:
        return list(
            dict.fromkeys([self.blank, *self.tape, *(symbol for rule in self.rules for symbol in (rule[1], rule[2]))])
        )


def read_turing(path: Path) -> Turing:
    """Reads a JSON object with `start`, `blank` and `rules` {state: {symbol: [write, L|R|S, state]}}.

    `tape`, `head` and `about` are optional.

    Raises: UsageError when it is not a Turing machine, StitchError when it is not JSON.
    """
    return from_description(read_json(path, "the program", _without_repeated_keys))


def from_description(found: Mapping[str, Any]) -> Turing:
    """The machine of a JSON object (`read_turing`).

    Raises: UsageError when it is not a Turing machine.
    """
    known = {"start", "blank", "rules", "tape", "head", "about", "kind"}
    if not {"start", "blank", "rules"} <= set(found) <= known:
        raise UsageError(
            f"a Turing machine needs start, blank and rules, and may have tape, head and about; got {', '.join(sorted(found))}."
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


def _without_repeated_keys(pairs: Sequence[tuple[str, Any]]) -> dict:
    names = [name for name, _ in pairs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"a state may have one rule for each symbol; got {', '.join(twice)} twice. Remove one.")
    return dict(pairs)


@dataclass(frozen=True)
class Names:
    """Names of a machine's states and symbols in the text: letters A to P, and digits 0 to 7 with 0 for the blank."""

    states: dict[str, str]
    symbols: dict[str, str]

    @classmethod
    def of(cls, machine: Turing, tape: str) -> "Names":
        """Names in the order in which states and symbols appear.

        Raises: UsageError for more states or symbols than names, or a tape with other symbols.
        """
        states, symbols = machine.states, machine.symbols
        if unknown := sorted(set(tape) - set(symbols)):
            raise UsageError(f"tape must consist of the symbols {' '.join(symbols)}; got {', '.join(unknown)}.")
        for kind, own, names in (("states", states, STATES), ("symbols", symbols, SYMBOLS)):
            if len(own) > len(names):
                raise UsageError(f"the machine may have {len(names)} {kind} at most; it has {len(own)}.")
        return cls(dict(zip(states, STATES, strict=False)), dict(zip(symbols, SYMBOLS, strict=False)))


def program_text(machine: Turing, names: Names, order: Sequence[int] | None = None) -> str:
    """Rules such as `A0B1>` (in state A on symbol 0, go to B, write 1, move right) in the given order, and a bar."""
    rules = [machine.rules[index] for index in (order if order is not None else range(len(machine.rules)))]
    return (
        "".join(
            names.states[state] + names.symbols[symbol] + names.states[to] + names.symbols[write] + MOVES[move]
            for state, symbol, write, move, to in rules
        )
        + BAR
    )


def frame_text(names: Names, cells: Sequence[str], head: int, state: str) -> str:
    """The tape with the state before the symbol under the head, and a bar: `01A10|`."""
    digits = [names.symbols[cell] for cell in cells]
    digits[head] = names.states[state] + digits[head]
    return "".join(digits) + BAR


def laid_out(machine: Turing, tape: str, window: int, head: int) -> tuple[list[str], int]:
    """The tape centred in the window, and the position of the head there.

    Raises: UsageError when the tape does not fit the window, or the head is not on it.
    """
    if len(tape) > window or not 0 <= head < max(len(tape), 1):
        raise UsageError(
            f"tape must fit a window of {window} cells, with the head on it; got {len(tape)} cells and head {head}."
        )
    left = (window - len(tape)) // 2
    cells = [machine.blank] * left + list(tape)
    return cells + [machine.blank] * (window - len(cells)), left + head
