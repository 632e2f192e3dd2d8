"""Deterministic finite automata and machines with output, as data: from JSON, regular expressions or automata-lib's objects."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stitch.errors import StitchError, UsageError

REMEDY = "pass --normalise to have it determinised, completed and minimised."


@dataclass(frozen=True)
class Automaton:
    """Reading `symbols[a]` in state q leads to state `steps[q][a]` and says `says[q][a]`, the name of a token.

    Of an automaton that accepts, what is said is the new state, with a plus where it accepts; of a Moore machine the new state
    and its output; of a Mealy machine the new state and the step's output.
    """

    states: tuple[str, ...]
    symbols: tuple[str, ...]
    start: int
    steps: tuple[tuple[int, ...], ...]
    says: tuple[tuple[str, ...], ...]

    def as_json(self) -> dict:
        return {
            "states": list(self.states),
            "symbols": list(self.symbols),
            "start": self.start,
            "steps": [list(row) for row in self.steps],
            "says": [list(row) for row in self.says],
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Automaton":
        """Of what `as_json` gave."""
        return cls(
            tuple(found["states"]),
            tuple(found["symbols"]),
            found["start"],
            tuple(tuple(row) for row in found["steps"]),
            tuple(tuple(row) for row in found["says"]),
        )

    @property
    def said(self) -> dict[str, int]:
        """Every token that can be said, and the state that it stands for, by state."""
        pairs = {
            (state, word)
            for row, words in zip(self.steps, self.says, strict=True)
            for state, word in zip(row, words, strict=True)
        }
        return {word: state for state, word in sorted(pairs)}


def read_automaton(spec: str, *, alphabet: str | None = None, normalise: bool = False) -> Automaton:
    """From the path of a JSON file, or a regular expression. Raises UsageError, StitchError."""
    path = Path(spec)
    if spec.endswith(".json"):
        if not path.is_file():
            raise UsageError(f"the automaton must be a file or a regular expression; there is no {spec}.")
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise StitchError(f"{spec} must be JSON; {error}.") from error
        return from_description(found, normalise=normalise)
    return from_regex(spec, alphabet)


def from_regex(expression: str, alphabet: str | None = None) -> Automaton:
    """The smallest complete automaton. Its syntax is automata-lib's: | * + ? {m,n} [a-z] . ( ) and escapes.

    Raises UsageError where the expression cannot be read or names no symbol.
    """
    nfa_class = _automata().fa.nfa.NFA
    try:
        nfa = nfa_class.from_regex(expression, input_symbols=set(alphabet) if alphabet else None)
    except Exception as error:  # its errors share no class
        raise UsageError(
            f"the regular expression {expression!r} must be one that automata-lib reads; {error}."
        ) from error
    if not nfa.input_symbols:
        raise UsageError(f"the regular expression {expression!r} must name a symbol; pass --alphabet.")
    return from_library(nfa)


def from_library(automaton: Any) -> Automaton:
    """An automata-lib DFA or NFA (determinised, completed, minimised), with states numbered in the order a search finds them."""
    dfa_class = _automata().fa.dfa.DFA
    dfa = automaton if isinstance(automaton, dfa_class) else dfa_class.from_nfa(automaton)
    dfa = dfa.to_complete().minify(retain_names=False)
    symbols = sorted(dfa.input_symbols)
    order = [dfa.initial_state]
    for state in order:
        for symbol in symbols:
            if dfa.transitions[state][symbol] not in order:
                order.append(dfa.transitions[state][symbol])
    return _accepting(
        {str(order.index(q)): {a: str(order.index(dfa.transitions[q][a])) for a in symbols} for q in order},
        symbols,
        "0",
        {str(order.index(q)) for q in dfa.final_states if q in order},
    )


def from_description(found: Any, *, normalise: bool = False) -> Automaton:
    """A JSON object: `transitions` {state: {symbol: state}}, `start`, and `accept` [state …] or `outputs` {state: output}; the
    transitions of a Mealy machine are {state: {symbol: [state, output]}}. A list of several states is an NFA's.

    Raises UsageError with everything that is wrong, and what helps.
    """
    needed = {"transitions", "start"}
    if (
        not isinstance(found, dict)
        or not needed <= set(found)
        or not set(found) <= {*needed, "accept", "outputs", "symbols", "about"}
    ):
        got = sorted(found) if isinstance(found, dict) else type(found).__name__
        raise UsageError(
            f"an automaton needs transitions and start, and accept or outputs (symbols, about); got {got}."
        )
    transitions, start = found["transitions"], str(found["start"])
    accept = {str(state) for state in found.get("accept", [])}
    outputs = {str(state): str(output) for state, output in found.get("outputs", {}).items()}
    targets = [target for row in transitions.values() for target in row.values()]
    symbols = [str(s) for s in found.get("symbols") or dict.fromkeys(s for row in transitions.values() for s in row)]
    if accept or not (outputs or any(isinstance(target, list) for target in targets)):
        nondeterministic = any(isinstance(target, list) for target in targets) or any(
            "" in row for row in transitions.values()
        )
        if normalise:
            return _normalised(transitions, symbols, start, accept)
        if nondeterministic:
            raise UsageError(
                f"the automaton must be deterministic; it has steps to several states or without a symbol: {REMEDY}"
            )
        steps = {str(q): {a: str(r) for a, r in row.items()} for q, row in transitions.items()}
        _check(steps, symbols, start, accept | set(outputs))
        _check_smallest(steps, symbols, start, {q: str(q in accept) for q in steps})
        return _accepting(steps, symbols, start, accept)
    if normalise:
        raise UsageError("--normalise is for automata that accept; a machine with output must be given as it is to be.")
    mealy = {str(q): {a: _pair(target, outputs) for a, target in row.items()} for q, row in transitions.items()}
    steps = {q: {a: pair[0] for a, pair in row.items()} for q, row in mealy.items()}
    _check(steps, symbols, start, set(outputs))
    says = [[f"<{mealy[q][a][0]}:{mealy[q][a][1]}>" for a in symbols] for q in steps]
    return _numbered(steps, symbols, start, says)


def _pair(target: Any, outputs: Mapping[str, str]) -> tuple[str, str]:
    if isinstance(target, list):
        if len(target) != 2:
            raise UsageError(f"a Mealy machine's steps must be [state, output]; got {target}.")
        return str(target[0]), str(target[1])
    if str(target) not in outputs:
        raise UsageError(f"a Moore machine needs an output of every state; {target} has none.")
    return str(target), outputs[str(target)]


def _accepting(steps: Mapping[str, Mapping[str, str]], symbols: list[str], start: str, accept: set[str]) -> Automaton:
    says = [[f"<{steps[q][a]}{'+' if steps[q][a] in accept else ''}>" for a in symbols] for q in steps]
    return _numbered(steps, symbols, start, says)


def _numbered(
    steps: Mapping[str, Mapping[str, str]], symbols: list[str], start: str, says: list[list[str]]
) -> Automaton:
    states = list(steps)
    number = {state: index for index, state in enumerate(states)}
    return Automaton(
        tuple(states),
        tuple(symbols),
        number[start],
        tuple(tuple(number[steps[q][a]] for a in symbols) for q in states),
        tuple(tuple(row) for row in says),
    )


def _check(steps: Mapping[str, Mapping[str, str]], symbols: list[str], start: str, named: set[str]) -> None:
    """Every state and symbol known, every step there, every state reached. Raises UsageError that names three of each at most."""
    wrong = []
    if not symbols or any(not symbol for symbol in symbols):
        wrong.append("symbols must be there and not empty")
    unknown = {start, *named, *(target for row in steps.values() for target in row.values())} - set(steps)
    if unknown:
        wrong.append(f"no transitions of {_some(unknown)}")
    strange = {symbol for row in steps.values() for symbol in row} - set(symbols)
    if strange:
        wrong.append(f"unknown symbols {_some(strange)}")
    missing = [f"({q}, {a})" for q in steps for a in symbols if a not in steps[q]]
    if missing:
        wrong.append(f"{len(missing)} missing transitions such as {_some(missing)}; {REMEDY}")
    if not wrong:
        reached = [start]
        for state in reached:
            reached += [target for target in dict.fromkeys(steps[state].values()) if target not in reached]
        if left := set(steps) - set(reached):
            wrong.append(f"unreachable states {_some(left)}; {REMEDY}")
    if wrong:
        raise UsageError("the automaton has " + "; ".join(wrong))


def _check_smallest(
    steps: Mapping[str, Mapping[str, str]], symbols: list[str], start: str, kind: Mapping[str, str]
) -> None:
    """Raises UsageError when two states are never told apart. Source: Moore 1956."""
    classes, count = dict(kind), 0
    while len(set(classes.values())) > count:
        count = len(set(classes.values()))
        rows = {q: (classes[q], *(classes[steps[q][a]] for a in symbols)) for q in steps}
        numbers = {row: str(index) for index, row in enumerate(dict.fromkeys(rows.values()))}
        classes = {q: numbers[row] for q, row in rows.items()}
    if count < len(steps):
        same = next(
            [q for q in steps if classes[q] == one] for one in classes.values() if list(classes.values()).count(one) > 1
        )
        raise UsageError(f"the automaton has duplicate states ({_some(same)} do the same); {REMEDY}")


def _some(names: Any) -> str:
    names = sorted(map(str, names))
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _normalised(transitions: Mapping[str, Any], symbols: list[str], start: str, accept: set[str]) -> Automaton:
    moves = {
        str(q): {a: {str(r) for r in (target if isinstance(target, list) else [target])} for a, target in row.items()}
        for q, row in transitions.items()
    }
    states = {start, *accept, *moves, *(r for row in moves.values() for targets in row.values() for r in targets)}
    nfa = _automata().fa.nfa.NFA(
        states=states,
        input_symbols=set(symbols),
        transitions={q: moves.get(q, {}) for q in states},
        initial_state=start,
        final_states=accept,
    )
    return from_library(nfa)


def _automata() -> Any:
    try:
        import automata.fa.dfa
        import automata.fa.nfa
    except ImportError:
        raise UsageError(
            "regular expressions and --normalise need automata-lib: pip install 'stitch-lm[automata]'."
        ) from None
    return automata
