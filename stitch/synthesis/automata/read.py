"""Reads automata from JSON, regular expressions or automata-lib's objects."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stitch.errors import UsageError, require_extra
from stitch.synthesis.automata.automaton import Automaton
from stitch.synthesis.automata.checks import REMEDY, Steps, check_complete, check_minimal
from stitch.synthesis.json_file import read_json

REQUIRED, OPTIONAL = {"transitions", "start"}, {"accept", "outputs", "symbols", "about"}


def read_automaton(spec: str, *, alphabet: str | None = None, normalise: bool = False) -> Automaton:
    """The automaton of `spec`, the path of a JSON file or a regular expression.

    `alphabet` adds symbols that a regular expression does not name; `normalise` determinises, completes and minimises.

    Raises: UsageError when it cannot be compiled, StitchError when the file is not JSON.
    """
    if not spec.endswith(".json"):
        return from_regex(spec, alphabet)
    return from_description(read_json(Path(spec), "the automaton"), normalise=normalise)


def from_regex(expression: str, alphabet: str | None = None) -> Automaton:
    """The minimal complete automaton. The syntax is automata-lib's: | * + ? {m,n} [a-z] . ( ) and escapes.

    Raises: UsageError when the expression cannot be read or names no symbol.
    """
    nfa_class = _automata_lib().fa.nfa.NFA
    try:
        nfa = nfa_class.from_regex(expression, input_symbols=set(alphabet) if alphabet else None)
    except Exception as error:  # its exceptions have no common class
        raise UsageError(
            f"the regular expression {expression!r} must be one that automata-lib reads; {error}."
        ) from error
    if not nfa.input_symbols:
        raise UsageError(f"the regular expression {expression!r} must name a symbol; give an `alphabet`.")
    return from_library(nfa)


def from_library(automaton: Any) -> Automaton:
    """An automata-lib DFA or NFA, determinised, completed and minimised. States are numbered in breadth-first order."""
    dfa_class = _automata_lib().fa.dfa.DFA
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
    """The automaton of a JSON object with `transitions` {state: {symbol: state}}, `start`, and `accept` or `outputs`.

    `accept` is a list of states, `outputs` {state: output} is a Moore machine's. Transitions of a Mealy machine are
    {state: {symbol: [state, output]}}. Those of a nondeterministic automaton are lists of states.

    Raises: UsageError that lists everything that is wrong, and the remedy.
    """
    if not isinstance(found, dict) or not REQUIRED <= set(found) <= REQUIRED | OPTIONAL:
        got = sorted(found) if isinstance(found, dict) else type(found).__name__
        raise UsageError(
            f"an automaton needs transitions and start, and may have accept or outputs, symbols and about; got {got}."
        )
    rows = found["transitions"].values()
    symbols = [str(s) for s in found.get("symbols") or dict.fromkeys(s for row in rows for s in row)]
    lists = any(isinstance(target, list) for row in rows for target in row.values())
    if found.get("accept") or not (found.get("outputs") or lists):
        return _acceptor(found, symbols, nondeterministic=lists or any("" in row for row in rows), normalise=normalise)
    if normalise:
        raise UsageError("`normalise` is for accepting automata; this one has outputs, and is compiled as it is given.")
    return _with_outputs(found, symbols)


def _acceptor(found: dict, symbols: list[str], *, nondeterministic: bool, normalise: bool) -> Automaton:
    start, accept = str(found["start"]), {str(state) for state in found.get("accept", [])}
    if normalise:
        return _normalised(found["transitions"], symbols, start, accept)
    if nondeterministic:
        raise UsageError(
            f"the automaton must be deterministic; it has transitions to several states or without a symbol: {REMEDY}."
        )
    steps = {str(q): {a: str(r) for a, r in row.items()} for q, row in found["transitions"].items()}
    check_complete(steps, symbols, start, accept | set(map(str, found.get("outputs", {}))))
    check_minimal(steps, symbols, accept)
    return _accepting(steps, symbols, start, accept)


def _with_outputs(found: dict, symbols: list[str]) -> Automaton:
    start = str(found["start"])
    outputs = {str(state): str(output) for state, output in found.get("outputs", {}).items()}
    mealy = {
        str(q): {a: _state_and_output(target, outputs) for a, target in row.items()}
        for q, row in found["transitions"].items()
    }
    steps = {q: {a: state for a, (state, _) in row.items()} for q, row in mealy.items()}
    check_complete(steps, symbols, start, set(outputs))
    says = [[f"<{mealy[q][a][0]}:{mealy[q][a][1]}>" for a in symbols] for q in steps]
    return _numbered(steps, symbols, start, says)


def _state_and_output(target: Any, outputs: Mapping[str, str]) -> tuple[str, str]:
    if isinstance(target, list):
        if len(target) != 2:
            raise UsageError(f"a Mealy machine's transitions must be [state, output]; got {target}.")
        return str(target[0]), str(target[1])
    if str(target) not in outputs:
        raise UsageError(f"a Moore machine needs an output for every state; {target} has none.")
    return str(target), outputs[str(target)]


def _accepting(steps: Steps, symbols: list[str], start: str, accept: set[str]) -> Automaton:
    says = [[f"<{steps[q][a]}{'+' if steps[q][a] in accept else ''}>" for a in symbols] for q in steps]
    return _numbered(steps, symbols, start, says)


def _numbered(steps: Steps, symbols: list[str], start: str, says: list[list[str]]) -> Automaton:
    states = list(steps)
    number = {state: index for index, state in enumerate(states)}
    return Automaton(
        tuple(states),
        tuple(symbols),
        number[start],
        tuple(tuple(number[steps[q][a]] for a in symbols) for q in states),
        tuple(tuple(row) for row in says),
    )


def _normalised(transitions: Mapping[str, Any], symbols: list[str], start: str, accept: set[str]) -> Automaton:
    moves = {
        str(q): {a: {str(r) for r in (target if isinstance(target, list) else [target])} for a, target in row.items()}
        for q, row in transitions.items()
    }
    states = {start, *accept, *moves, *(r for row in moves.values() for targets in row.values() for r in targets)}
    nfa = _automata_lib().fa.nfa.NFA(
        states=states,
        input_symbols=set(symbols),
        transitions={q: moves.get(q, {}) for q in states},
        initial_state=start,
        final_states=accept,
    )
    return from_library(nfa)


def _automata_lib() -> Any:
    require_extra("automata", "a regular expression or `normalise`")
    import automata.fa.dfa
    import automata.fa.nfa

    return automata
