"""Which key heads become one: the partition into equal groups whose closed-form merge loses least."""

import itertools
import math
import random
from collections.abc import Callable, Iterator

from stitch.conversions.heads.merge import Groups

EXHAUSTIVE = 8  # key heads up to which every partition is tried
MOVES = 400  # of annealing, per key head


def best_partition(old: int, new: int, cost: Callable[[tuple[int, ...]], float], seed: int = 0) -> Groups:
    """Groups of old / new heads with the least sum of `cost`, which is asked once for each group: all partitions of up to eight
    heads, simulated annealing of pairwise swaps beyond."""
    known: dict[tuple[int, ...], float] = {}

    def of(group: tuple[int, ...]) -> float:
        group = tuple(sorted(group))
        if group not in known:
            known[group] = cost(group)
        return known[group]

    size = old // new
    if new in (1, old):
        return tuple(tuple(range(start, start + size)) for start in range(0, old, size))
    if old <= EXHAUSTIVE:
        return min(partitions(tuple(range(old)), size), key=lambda groups: sum(map(of, groups)))
    return _annealed(old, size, of, random.Random(seed))


def partitions(heads: tuple[int, ...], size: int) -> Iterator[Groups]:
    """All ways to cut `heads` into groups of `size`."""
    if not heads:
        yield ()
        return
    first, rest = heads[0], heads[1:]
    for others in itertools.combinations(rest, size - 1):
        left = tuple(head for head in rest if head not in others)
        for more in partitions(left, size):
            yield ((first, *others), *more)


def _annealed(old: int, size: int, of: Callable[[tuple[int, ...]], float], generator: random.Random) -> Groups:
    groups = [list(range(start, start + size)) for start in range(0, old, size)]
    best, now = [list(group) for group in groups], sum(of(tuple(group)) for group in groups)
    least, start = now, now / old
    for move in range(moves := MOVES * old):
        heat = start * (1e-3 ** (move / moves))
        one, other = generator.sample(range(len(groups)), 2)
        i, j = generator.randrange(size), generator.randrange(size)
        before = of(tuple(groups[one])) + of(tuple(groups[other]))
        groups[one][i], groups[other][j] = groups[other][j], groups[one][i]
        change = of(tuple(groups[one])) + of(tuple(groups[other])) - before
        if change > 0 and generator.random() >= math.exp(-change / max(heat, 1e-300)):
            groups[one][i], groups[other][j] = groups[other][j], groups[one][i]
            continue
        now += change
        if now < least - 1e-12:
            least, best = now, [list(group) for group in groups]
    return tuple(sorted(tuple(sorted(group)) for group in best))
