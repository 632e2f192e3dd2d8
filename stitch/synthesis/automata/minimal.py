"""The minimal automaton of a nondeterministic one. Subsets of states are counted while they are found, and stop at a bound."""

from collections.abc import Mapping, Sequence
from typing import Any

from stitch.errors import UsageError, require_extra
from stitch.synthesis.automata.automaton import Automaton
from stitch.synthesis.automata.tables import MOST_STATES, MOST_TRANSITIONS, accepting

Moves = Mapping[Any, Mapping[str, Any]]  # {state: {symbol: states}}; the symbol "" is read without reading

# Before equivalent ones are found to be one. There may be 2 to the power of the states: (a|b)*a(a|b){22} has millions.
MOST_SUBSETS = 4 * MOST_STATES
MOST_WORK = 4_000_000  # moves looked at: a few seconds


def from_library(automaton: Any, where: str = "the automaton") -> Automaton:
    """An automata-lib DFA or NFA, determinised, completed and minimised. States are numbered in breadth-first order.

    Raises: UsageError where that takes too many states.
    """
    final, symbols = automaton.final_states, sorted(automaton.input_symbols)
    deterministic = isinstance(automaton, automata_lib().fa.dfa.DFA)
    moves = {
        state: {symbol: {to} if deterministic else to for symbol, to in automaton.transitions.get(state, {}).items()}
        for state in automaton.states
    }
    return minimal(moves, symbols, automaton.initial_state, final, where)


def minimal(moves: Moves, symbols: Sequence[str], start: Any, accept: Any, where: str) -> Automaton:
    """The minimal complete automaton, whose states are numbered in breadth-first order.

    Raises: UsageError where that takes too many states.
    """
    rows, accepts = determinised(moves, symbols, start, accept, where)
    names = dict(enumerate(rows))
    dfa = (
        automata_lib()
        .fa.dfa.DFA(
            states=set(names),
            input_symbols=set(symbols),
            transitions={state: dict(zip(symbols, row, strict=True)) for state, row in names.items()},
            initial_state=0,
            final_states=accepts,
        )
        .minify(retain_names=False)
    )
    order = {dfa.initial_state: "0"}
    queue = [dfa.initial_state]
    for state in queue:
        for symbol in symbols:
            if (to := dfa.transitions[state][symbol]) not in order:
                order[to] = str(len(order))
                queue.append(to)
    steps = {order[q]: {a: order[dfa.transitions[q][a]] for a in symbols} for q in queue}
    return accepting(steps, symbols, "0", {order[q] for q in dfa.final_states if q in order}, where)


def determinised(
    moves: Moves, symbols: Sequence[str], start: Any, accept: Any, where: str
) -> tuple[list[list[int]], set[int]]:
    """The next subset of states for each subset and symbol, the first subset first, and which of them accept.

    A subset is a number whose bits are states. Source: Rabin & Scott 1959.
    """
    if sum(len(to) for row in moves.values() for to in row.values()) > MOST_TRANSITIONS:
        raise UsageError(f"{where} may have {MOST_TRANSITIONS:,} transitions; it has more: split it.")
    bit = {state: 1 << number for number, state in enumerate(moves)}
    closure = {state: _closure(moves, state, bit) for state in moves}
    reached = [
        [_union(closure[to] for to in row.get(symbol, ())) for symbol in symbols] for row in moves.values()
    ]  # by state and symbol
    accepting_bits = _union(bit[state] for state in accept)
    number, rows, work = {closure[start]: 0}, [], 0
    queue = [closure[start]]
    for subset in queue:
        members = [state for state in range(subset.bit_length()) if subset >> state & 1]
        work += len(members) * len(symbols)
        row = []
        for place in range(len(symbols)):
            after = _union(reached[state][place] for state in members)
            if after not in number:
                number[after] = len(number)
                queue.append(after)
            row.append(number[after])
        rows.append(row)
        if len(number) > MOST_SUBSETS or work > MOST_WORK:
            raise UsageError(
                f"{where} must be determinised in {MOST_SUBSETS:,} states and {MOST_WORK:,} moves, and needs more: its states "
                f"grow with every choice that it leaves open. Split it, or lower its counts."
            )
    return rows, {index for subset, index in number.items() if subset & accepting_bits}


def _closure(moves: Moves, state: Any, bit: dict[Any, int]) -> int:
    """The states that are reached without reading a symbol."""
    found, stack = bit[state], [state]
    while stack:
        for to in moves[stack.pop()].get("", ()):
            if not found & bit[to]:
                found |= bit[to]
                stack.append(to)
    return found


def _union(subsets: Any) -> int:
    found = 0
    for subset in subsets:
        found |= subset
    return found


def automata_lib() -> Any:
    require_extra("automata", "a regular expression or `normalise`")
    import automata.fa.dfa
    import automata.fa.nfa

    return automata
