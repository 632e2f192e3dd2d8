"""Programs that the SUBLEQ checkpoint is tried on: random memories, which rewrite themselves as likely as not."""

import random
from collections.abc import Iterator

from stitch.synthesis.machines.subleq import IO, frames
from stitch.synthesis.machines.subleq_circuit import tokens_of
from stitch.synthesis.trials import Trial, padded


def trials(cells: int, context: int, tokens: int, seed: int) -> Iterator[Trial]:
    """About `tokens` tokens of programs."""
    generator, number = random.Random(seed), {token: index for index, token in enumerate(tokens_of(cells))}
    size, rows = cells + 2, []
    while sum(map(len, rows)) < tokens:
        memory, counter = random_memory(cells, generator), generator.randrange(cells - 2)
        found = frames(memory, (context - 1) // size, counter)
        rows.append([0, *(number[token] for frame in found for token in frame)])
    answers = [[row[place + 1] if size <= place < len(row) - 1 else -1 for place in range(len(row))] for row in rows]
    yield padded("random programs", rows, answers)


def random_memory(cells: int, generator: random.Random) -> list[int]:
    """Mostly addresses that are there, now and then the way out, or anything."""

    def drawn() -> int:
        kind = generator.random()
        return generator.randrange(cells) if kind < 0.9 else IO if kind < 0.95 else generator.randrange(256)

    return [drawn() for _ in range(cells)]
