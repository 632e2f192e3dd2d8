"""Turing machines: read from JSON, and as the text that the universal machine's checkpoint reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from stitch.errors import UsageError
from stitch.files.schema import Schema, checked
from stitch.files.specification import read_json

STATES = "ABCDEFGHIJKLMNOP"
SYMBOLS = "01234567"
MOVES = {"L": "<", "R": ">", "S": "="}
BAR, HALT, EDGE = "|", "!", "#"
LONGEST_STATE = 100  # characters of a state's name in a file
LONGEST_TAPE = 32_768  # cells: no checkpoint has a larger window
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
    where: str = "the machine"  # in messages

    @property
    def states(self) -> list[str]:
        return list(dict.fromkeys([self.start, *(state for rule in self.rules for state in (rule[0], rule[4]))]))

    @property
    def symbols(self) -> list[str]:
        return list(
            dict.fromkeys([self.blank, *self.tape, *(symbol for rule in self.rules for symbol in (rule[1], rule[2]))])
        )


def _symbol(found: Any) -> str:
    if type(found) not in (str, int) or len(str(found)) != 1 or not str(found).isprintable():
        raise ValueError("must be a symbol, one character that can be printed")
    return str(found)


def _state(found: Any) -> str:
    if type(found) not in (str, int) or not 0 < len(str(found)) <= LONGEST_STATE or not str(found).isprintable():
        raise ValueError(f"must be a state, a name of 1 to {LONGEST_STATE} characters that can be printed")
    return str(found)


def _rule(found: Any) -> Any:
    if not (isinstance(found, list) and len(found) == 3 and isinstance(found[1], str) and found[1] in MOVES):
        raise ValueError("must be a rule, [symbol to write, L, R or S, next state]")
    return _symbol(found[0]), found[1], _state(found[2])


Symbol = Annotated[str, BeforeValidator(_symbol)]
State = Annotated[str, BeforeValidator(_state)]


class TuringFile(Schema):
    """A JSON object with `start`, `blank` and `rules` {state: {symbol: [write, L|R|S, state]}}; the rest is optional."""

    start: State
    blank: Symbol
    rules: dict[State, dict[Symbol, Annotated[Any, BeforeValidator(_rule)]]]
    tape: str = Field("", max_length=LONGEST_TAPE)
    head: int = Field(0, ge=0)
    about: str = ""
    kind: Literal["turing"] = "turing"


def read_turing(path: Path) -> Turing:
    """Reads a machine from a JSON file. Raises: UsageError when it is not a Turing machine (`TuringFile`)."""
    return from_description(read_json(path, "the program"), str(path))


def from_description(found: Any, where: str = "the Turing machine") -> Turing:
    """The machine of a JSON object (`TuringFile`). `where` it stands begins the messages of errors.

    Raises: UsageError when it is not a Turing machine.
    """
    file = checked(TuringFile, found, where)
    if file.head >= max(len(file.tape), 1):
        raise UsageError(f"{where} must have its head on the tape of {len(file.tape)} cells; it is at {file.head}.")
    rules = [(state, symbol, *rule) for state, row in file.rules.items() for symbol, rule in row.items()]
    machine = Turing(file.about, file.start, file.blank, tuple(rules), file.tape, file.head, where)
    Names.of(machine, file.tape)
    return machine


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
            raise UsageError(
                f"tape must consist of the symbols {' '.join(symbols)} of {machine.where}; got {', '.join(unknown)}."
            )
        for kind, own, names in (("states", states, STATES), ("symbols", symbols, SYMBOLS)):
            if len(own) > len(names):
                raise UsageError(f"{machine.where} may have {len(names)} {kind} at most; it has {len(own)}.")
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
            f"tape must fit a window of {window} cells, with the head on it; got {len(tape)} cells and head {head} for "
            f"{machine.where}."
        )
    left = (window - len(tape)) // 2
    cells = [machine.blank] * left + list(tape)
    return cells + [machine.blank] * (window - len(cells)), left + head
