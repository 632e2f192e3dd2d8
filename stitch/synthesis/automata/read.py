"""Reads automata from JSON, regular expressions or automata-lib's objects."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from stitch.errors import UsageError
from stitch.files.schema import Schema, checked
from stitch.files.specification import read_json, shown
from stitch.synthesis.automata.automaton import Automaton
from stitch.synthesis.automata.checks import REMEDY, check_complete, check_minimal
from stitch.synthesis.automata.expression import from_regex
from stitch.synthesis.automata.minimal import minimal
from stitch.synthesis.automata.tables import accepting, check_size, numbered


def _name(found: Any) -> str:
    if type(found) not in (str, int):
        raise ValueError("must be a name")
    return str(found)


def _names(found: Any) -> Any:
    return [_name(one) for one in found] if isinstance(found, list) else _name(found)


Name = Annotated[str, BeforeValidator(_name)]
Target = Annotated[Any, BeforeValidator(_names)]


class AutomatonFile(Schema):
    """`accept` is a list of states, `outputs` {state: output} is a Moore machine's. Transitions {state: {symbol: state}} of a
    Mealy machine have [state, output] in the place of the state, those of a nondeterministic automaton a list of states.
    """

    transitions: dict[str, dict[str, Target]]
    start: Name
    accept: list[Name] = Field([])
    outputs: dict[str, Name] = Field({})
    symbols: list[Name] = Field([])
    about: str = ""


def read_automaton(spec: str, *, alphabet: str | None = None, normalise: bool = False) -> Automaton:
    """The automaton of `spec`, the path of a JSON file or a regular expression.

    `alphabet` adds symbols that a regular expression does not name; `normalise` determinises, completes and minimises.

    Raises: UsageError when it cannot be read or compiled.
    """
    if not spec.endswith(".json"):
        return from_regex(spec, alphabet)
    return from_description(read_json(Path(spec), "the automaton"), normalise=normalise, where=spec)


def from_description(found: Any, *, normalise: bool = False, where: str = "the automaton") -> Automaton:
    """The automaton of a JSON object (`AutomatonFile`). `where` it stands begins the messages of errors.

    Raises: UsageError that lists everything that is wrong, and the remedy.
    """
    file = checked(AutomatonFile, found, where)
    rows = file.transitions.values()
    symbols = file.symbols or list(dict.fromkeys(symbol for row in rows for symbol in row))
    check_size(len(rows), len(symbols), where)
    lists = any(isinstance(target, list) for row in rows for target in row.values())
    if file.accept and file.outputs:
        raise UsageError(f"{where} may have accept or outputs; it has both: remove one.")
    if not file.accept and (file.outputs or lists):
        if normalise:
            raise UsageError(
                f"`normalise` is for accepting automata; {where} has outputs, and is compiled as it is given."
            )
        return _with_outputs(file, symbols, where)
    if normalise:
        return _normalised(file, symbols, where)
    if lists or any("" in row for row in rows):
        raise UsageError(
            f"{where} must be deterministic; it has transitions to several states or without a symbol: {REMEDY}."
        )
    check_complete(file.transitions, symbols, file.start, set(file.accept), where)
    check_minimal(file.transitions, symbols, set(file.accept), where)
    return accepting(file.transitions, symbols, file.start, set(file.accept), where)


def _with_outputs(file: AutomatonFile, symbols: list[str], where: str) -> Automaton:
    def state_and_output(target: Any) -> tuple[str, str]:
        if isinstance(target, list):
            if len(target) != 2:
                raise UsageError(
                    f"transitions of the Mealy machine in {where} must be [state, output]; got {shown(target)}."
                )
            return target[0], target[1]
        if target not in file.outputs:
            raise UsageError(f"the Moore machine in {where} needs an output for every state; {shown(target)} has none.")
        return target, file.outputs[target]

    mealy = {q: {a: state_and_output(target) for a, target in row.items()} for q, row in file.transitions.items()}
    steps = {q: {a: state for a, (state, _) in row.items()} for q, row in mealy.items()}
    check_complete(steps, symbols, file.start, set(file.outputs), where)
    says = [[f"<{mealy[q][a][0]}:{mealy[q][a][1]}>" for a in symbols] for q in steps]
    return numbered(steps, symbols, file.start, says, where)


def _normalised(file: AutomatonFile, symbols: list[str], where: str) -> Automaton:
    moves = {
        q: {a: set(target if isinstance(target, list) else [target]) for a, target in row.items()}
        for q, row in file.transitions.items()
    }
    if undeclared := sorted({a for row in moves.values() for a in row} - {*symbols, ""}):
        raise UsageError(
            f"{where} has transitions by {shown(undeclared[0])}, which is none of its symbols: add it to them."
        )
    mentioned = [file.start, *file.accept, *(to for row in moves.values() for tos in row.values() for to in tos)]
    every = {**{q: {} for q in mentioned}, **moves}
    check_size(len(every), 1, where)
    symbols = [symbol for symbol in symbols if symbol]
    if not symbols:
        raise UsageError(f"{where} must have a symbol; it has none.")
    return minimal(every, sorted(symbols), file.start, set(file.accept), where)
