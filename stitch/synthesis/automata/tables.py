"""Automata from named transitions {state: {symbol: next state}}, and what every automaton's tables must be."""

from collections.abc import Mapping, Sequence

from stitch.errors import UsageError
from stitch.files.specification import shown
from stitch.synthesis.automata.automaton import Automaton

Steps = Mapping[str, Mapping[str, str]]

# A neuron for every transition, and a channel for every state and symbol.
MOST_STATES, MOST_TRANSITIONS = 1_024, 16_384
LONGEST_NAME = 200  # characters


def check_size(states: int, symbols: int, where: str) -> None:
    """Raises: UsageError for more states or transitions than are compiled. `where` names the automaton."""
    if states > MOST_STATES or states * symbols > MOST_TRANSITIONS:
        raise UsageError(
            f"{where} may have {MOST_STATES:,} states and {MOST_TRANSITIONS:,} transitions; it has {states:,} states and "
            f"{symbols:,} symbols: split it."
        )


def check_table(automaton: Automaton, where: str) -> Automaton:
    """The automaton, whose tables fit each other.

    Raises: UsageError for one that is too large, names that cannot be printed or are there twice, rows of another length,
    states that do not exist, and an output that is said in two states, since the model reads its outputs as its state.
    """
    states, symbols, says = automaton.states, automaton.symbols, automaton.says
    check_size(len(states), len(symbols), where)
    if not states or not symbols:
        raise UsageError(f"{where} must have a state and a symbol; it has {len(states)} and {len(symbols)}.")
    for kind, names in (("states", states), ("symbols", symbols), ("outputs", [word for row in says for word in row])):
        if wrong := [name for name in names if not _printed(name)]:
            raise UsageError(
                f"{kind} of {where} must have names of 1 to {LONGEST_NAME} characters that can be printed; got {shown(wrong[0])}."
            )
        if kind != "outputs" and len(set(names)) < len(names):
            twice = next(name for name in names if list(names).count(name) > 1)
            raise UsageError(f"{kind} of {where} must differ; got {shown(twice)} twice.")
    rows = [*automaton.steps, *says]
    if len(automaton.steps) != len(says) or len(says) != len(states) or any(len(row) != len(symbols) for row in rows):
        raise UsageError(
            f"{where} must have a step and an output for each of {len(states)} states and {len(symbols)} symbols."
        )
    if any(not 0 <= to < len(states) for row in (*automaton.steps, (automaton.start,)) for to in row):
        raise UsageError(f"steps of {where} must lead to its {len(states)} states, numbered from 0.")
    said: dict[str, int] = {}
    for row, words in zip(automaton.steps, says, strict=True):
        for to, word in zip(row, words, strict=True):
            if said.setdefault(word, to) != to:
                raise UsageError(
                    f"outputs of {where} must tell its states apart; {shown(word)} is that of {states[said[word]]} and of "
                    f"{states[to]}: rename one."
                )
    return automaton


def _printed(name: str) -> bool:
    return 0 < len(name) <= LONGEST_NAME and name.replace("\n", " ").replace("\t", " ").isprintable()


def accepting(steps: Steps, symbols: Sequence[str], start: str, accept: set[str], where: str) -> Automaton:
    """The automaton that says its state, with a plus where it accepts."""
    says = [[f"<{steps[q][a]}{'+' if steps[q][a] in accept else ''}>" for a in symbols] for q in steps]
    return numbered(steps, symbols, start, says, where)


def numbered(steps: Steps, symbols: Sequence[str], start: str, says: Sequence[Sequence[str]], where: str) -> Automaton:
    number = {state: index for index, state in enumerate(steps)}
    table = tuple(tuple(number[row[a]] for a in symbols) for row in steps.values())
    return check_table(Automaton(tuple(steps), tuple(symbols), number[start], table, tuple(map(tuple, says))), where)
