"""Trials of the SUBLEQ checkpoint: random memories, many of which modify themselves."""

import random
from collections.abc import Iterator

from stitch.synthesis.machines.subleq import OUTPUT, frames
from stitch.synthesis.machines.subleq_tokens import tokens_of
from stitch.synthesis.trials import Trial, padded


def trials(cells: int, context: int, tokens: int, seed: int) -> Iterator[Trial]:
    """Runs of random programs with about `tokens` tokens in total."""
    generator, number = random.Random(seed), {token: index for index, token in enumerate(tokens_of(cells))}
    size, rows = cells + 2, []
    while sum(map(len, rows)) < tokens:
        memory, counter = random_memory(cells, generator), generator.randrange(cells - 2)
        found = frames(memory, (context - 1) // size, counter)
        rows.append([0, *(number[token] for frame in found for token in frame)])
    answers = [[row[place + 1] if size <= place < len(row) - 1 else -1 for place in range(len(row))] for row in rows]
    yield padded("random programs", rows, answers)


def random_memory(cells: int, generator: random.Random) -> list[int]:
    """90 % addresses of existing cells, 5 % the output address, 5 % any byte."""

    def drawn() -> int:
        kind = generator.random()
        return generator.randrange(cells) if kind < 0.9 else OUTPUT if kind < 0.95 else generator.randrange(256)

    return [drawn() for _ in range(cells)]
