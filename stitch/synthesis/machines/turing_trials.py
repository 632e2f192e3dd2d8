"""Trials of the universal Turing machine: random machines with their rules in random order, on random tapes."""

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
    """Runs of random machines of every size, about `tokens` tokens in total; about half of them halt or leave their tape."""
    generator = random.Random(seed)
    rows: list[str] = []
    while len(rows) * context < tokens:
        drawn = random_machine(generator, most_rules(window, context))
        cells = generator.choices(drawn.symbols, k=window)
        rows += texts(drawn, cells, generator.randrange(window), context, generator)[:8]
    ids = [ids_of(text)[:context] for text in rows]
    yield padded("random machines", ids, [answers(row, window) for row in ids])


def most_rules(window: int, context: int) -> int:
    """The number of rules that fit the context together with two tapes."""
    return (context - 2 - 2 * (window + 1)) // 3


def random_machine(generator: random.Random, most: int) -> Turing:
    """A random machine with up to `most` rules."""
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
    """The run as texts that fit the context: each continues from the last tape of the one before. At most 64 texts.

    With a generator, rules are in random order.
    """
    names = Names.of(machine, "")
    order = list(range(len(machine.rules)))
    if generator:
        generator.shuffle(order)
    program = program_text(machine, names, order)
    room = context - 1 - 3 * len(machine.rules) - 1  # the first token, the rules and their bar take the rest
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
    """The last frame up to the token that ends the run, which replaces the first token that depends on the head's next move."""
    plain = [names.symbols[cell] for cell in cells]
    if how == "halt":
        return "".join(plain[: max(head - 1, 0)]) + HALT
    (write,) = (rule[2] for rule in machine.rules if rule[:2] == (state, cells[head]))
    return EDGE if head == 0 else "".join(plain[:head]) + names.symbols[write] + EDGE


def answers(ids: list[int], window: int) -> list[int]:
    """The next token at positions where it is determined: from the end of the first tape on."""
    first = ids.index(ID[BAR]) + window + 1
    return [ids[place + 1] if first <= place < len(ids) - 1 else -1 for place in range(len(ids))]
