"""Checks of an automaton's transitions {state: {symbol: next state}} before it is compiled."""

from collections.abc import Iterable

from stitch.errors import UsageError
from stitch.synthesis.automata.tables import Steps

REMEDY = "pass `normalise=True` to have it determinised, completed and minimised"


def check_complete(steps: Steps, symbols: list[str], start: str, named: set[str], where: str) -> None:
    """All states and symbols are known, all transitions are given, and all states can be reached.

    `named` are further states that must have transitions. `where` names the automaton.

    Raises: UsageError that lists all problems, with up to three examples of each.
    """
    problems = []
    if not symbols or any(not symbol for symbol in symbols):
        problems.append("no symbols or an empty one")
    unknown = {start, *named, *(target for row in steps.values() for target in row.values())} - set(steps)
    if unknown:
        problems.append(f"no transitions of {_examples(unknown)}")
    undeclared = {symbol for row in steps.values() for symbol in row} - set(symbols)
    if undeclared:
        problems.append(f"unknown symbols {_examples(undeclared)}")
    missing = [f"({q}, {a})" for q in steps for a in symbols if a not in steps[q]]
    if missing:
        problems.append(f"{len(missing)} missing transitions such as {_examples(missing)}; {REMEDY}")
    if not problems and (unreachable := set(steps) - set(_reachable(steps, start))):
        problems.append(f"unreachable states {_examples(unreachable)}; {REMEDY}")
    if problems:
        raise UsageError(f"{where} must be complete; it has {'; '.join(problems)}.")


def check_minimal(steps: Steps, symbols: list[str], accept: set[str], where: str) -> None:
    """No two states are equivalent.

    Raises: UsageError that names equivalent states.
    Source: Moore 1956.
    """
    classes, count = {q: str(q in accept) for q in steps}, 0
    while len(set(classes.values())) > count:
        count = len(set(classes.values()))
        rows = {q: (classes[q], *(classes[steps[q][a]] for a in symbols)) for q in steps}
        numbers = {row: str(index) for index, row in enumerate(dict.fromkeys(rows.values()))}
        classes = {q: numbers[row] for q, row in rows.items()}
    if count < len(steps):
        members = list(classes.values())
        equivalent = next([q for q in steps if classes[q] == one] for one in members if members.count(one) > 1)
        raise UsageError(
            f"{where} must be minimal; it has duplicate states ({_examples(equivalent)} are equivalent): {REMEDY}."
        )


def _reachable(steps: Steps, start: str) -> list[str]:
    found = [start]
    for state in found:
        found += [target for target in dict.fromkeys(steps[state].values()) if target not in found]
    return found


def _examples(names: Iterable) -> str:
    ordered = sorted(map(str, names))
    return ", ".join(ordered[:3]) + (", …" if len(ordered) > 3 else "")
