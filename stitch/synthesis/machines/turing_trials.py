"""Turing machines that the universal checkpoint is tried on: random ones, their rules in any order, from random tapes."""

import random
from collections.abc import Iterator

from stitch.synthesis import interpreters
from stitch.synthesis.machines.turing import (
    BAR,
    EDGE,
    HALT,
    MOVES,
    STATES,
    SYMBOLS,
    Names,
    Turing,
    frame_text,
    program_text,
)
from stitch.synthesis.machines.turing_circuit import ID, ids_of
from stitch.synthesis.trials import Trial, padded


def trials(window: int, context: int, tokens: int, seed: int) -> Iterator[Trial]:
    """About `tokens` tokens of random machines of every size; half of them halt, or leave their tape, sooner or later."""
    generator = random.Random(seed)
    rows: list[str] = []
    while len(rows) * context < tokens:
        drawn = random_machine(generator, most_rules(window, context))
        cells = generator.choices(drawn.symbols, k=window)
        rows += texts(drawn, cells, generator.randrange(window), context, generator)[:8]
    ids = [ids_of(text)[:context] for text in rows]
    yield padded("random machines", ids, [answers(row, window) for row in ids])


def most_rules(window: int, context: int) -> int:
    """That fit the context beside two tapes."""
    return (context - 2 - 2 * (window + 1)) // 3


def random_machine(generator: random.Random, most: int) -> Turing:
    """Of up to `most` rules."""
    states = STATES[: generator.randint(1, len(STATES))]
    symbols = SYMBOLS[: generator.randint(2, len(SYMBOLS))]
    kept = generator.choice([0.7, 0.95, 1.0])
    rules = [
        (q, a, generator.choice(symbols), generator.choice(list(MOVES)), generator.choice(states))
        for q in states
        for a in symbols
        if generator.random() < kept
    ]
    rules = generator.sample(rules, min(len(rules), most))
    return Turing("", states[0], symbols[0], tuple(rules), symbols, 0)


def texts(
    machine: Turing, cells: list[str], head: int, context: int, generator: random.Random | None = None
) -> list[str]:
    """The whole run, as often begun again from its last tape as the context asks for; with a generator, rules in random order."""
    names = Names.of(machine, "")
    order = list(range(len(machine.rules)))
    if generator:
        generator.shuffle(order)
    program = program_text(machine, names, order)
    room = context - 1 - 3 * len(machine.rules) - 1  # the first token, the rules and their bar
    frame = len(cells) + 1
    found, lines, state = [], [], machine.start
    last: tuple[str, list[str], int] = (machine.start, cells, head)
    for state, tape, place in interpreters.run(machine.rules, machine.start, cells, head):
        if state in ("halt", "edge"):
            lines.append(_end(names, machine, state, *last))
            break
        if (len(lines) + 1) * frame > room:
            found.append(program + "".join(lines))
            lines = lines[-1:]
            if len(found) == 64:  # it may never halt
                return found
        lines.append(frame_text(names, tape, place, state))
        last = (state, tape, place)
    return [*found, program + "".join(lines)]


def _end(names: Names, machine: Turing, how: str, state: str, cells: list[str], head: int) -> str:
    """The last line, up to the token that says how it ends: a cell before the head's, or the head's own, or the bar."""
    plain = [names.symbols[cell] for cell in cells]
    if how == "halt":
        return "".join(plain[: max(head - 1, 0)]) + HALT
    (write,) = (rule[2] for rule in machine.rules if rule[:2] == (state, cells[head]))
    return EDGE if head == 0 else "".join(plain[:head]) + names.symbols[write] + EDGE


def answers(ids: list[int], window: int) -> list[int]:
    """The next token wherever it follows: from the end of the first tape on."""
    first = ids.index(ID[BAR]) + window + 1
    return [ids[place + 1] if first <= place < len(ids) - 1 else -1 for place in range(len(ids))]
