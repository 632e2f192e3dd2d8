"""Which key heads to merge: the partition into equal groups with the smallest total cost."""

import itertools
import math
import random
from collections.abc import Callable, Iterator

from stitch.conversions.heads.merge import Groups

EXHAUSTIVE = 8  # number of key heads up to which all partitions are tried
MOVES = 400  # moves of simulated annealing per key head


def best_partition(old: int, new: int, cost: Callable[[tuple[int, ...]], float], seed: int = 0) -> Groups:
    """`new` groups of old / new heads each, with the smallest sum of `cost`, which is called once per group.

    Up to EXHAUSTIVE heads all partitions are tried; beyond that, simulated annealing swaps pairs of heads.
    """
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
    """All partitions of `heads` into groups of `size`."""
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
