"""Reference interpreters of compiled models, as simple as possible. They share no code with the compiler and do not use torch."""

from collections.abc import Iterator, Sequence


def words(machine: dict, string: Sequence[int]) -> list[str]:
    """The output of an automaton, in the form of its description, after each symbol."""
    said, state = [], machine["start"]
    for symbol in string:
        said.append(machine["says"][state][symbol])
        state = machine["steps"][state][symbol]
    return said


def run(
    rules: Sequence[tuple[str, str, str, str, str]], start: str, cells: Sequence[str], head: int
) -> Iterator[tuple[str, list[str], int]]:
    """State, cells and head of a Turing machine before the first and after each step, until it halts or leaves its cells.

    The last item is ("halt" or "edge", cells, head).
    """
    table = {(state, symbol): (write, move, to) for state, symbol, write, move, to in rules}
    cells, state = list(cells), start
    while True:
        yield state, list(cells), head
        if (state, cells[head]) not in table:
            yield "halt", list(cells), head
            return
        write, move, to = table[state, cells[head]]
        after = head + {"L": -1, "R": 1, "S": 0}[move]
        if not 0 <= after < len(cells):
            yield "edge", list(cells), head
            return
        cells[head], state, head = write, to, after


def subleq(memory: Sequence[int], counter: int = 0) -> Iterator[tuple[int | None, int | None, list[int]]]:
    """Output byte, counter and memory (bytes) before the first and after each step; the counter is None when it halts."""
    memory = list(memory)
    size = len(memory)
    yield None, counter, list(memory)
    while True:
        a, b, c = ([*memory[counter : counter + 3], None, None, None])[:3]
        out = None
        following = None
        if b == 255:
            if a is not None and a < size:
                out, following = memory[a], counter + 3
        elif a is not None and b is not None and a < size and b < size:
            memory[b] = (memory[b] - memory[a]) % 256
            following = c if memory[b] == 0 or memory[b] > 127 else counter + 3
        if following is None or following >= size:
            yield out, None, list(memory)
            return
        counter = following
        yield out, counter, list(memory)
