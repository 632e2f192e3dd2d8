"""Scores rows on a growing sample of the text and drops those that cannot win any more."""

from collections.abc import Callable, Iterable

from stitch.evaluation.scores import Scores

FIRST = 4_096  # tokens of the first sample; every later one has twice as many
LEVEL = 0.9999  # of the intervals that drop rows, as there are many rows and several looks at each


def race(
    rows: Iterable[str], score: Callable[[list[str], range], dict[str, Scores]], windows: int, first: int, margin: float
) -> dict[str, Scores]:
    """Scores, over all windows, of the rows that may lie within `margin` nats of the best. A single such row is not scored to
    the end.

    `score` has the scores of some rows on a range of `windows`, whose order must be random. After `first` windows, twice as many,
    and so on, the rows whose paired interval lies more than `margin` above the leader are dropped.
    """
    running, done, found = list(rows), 0, {}
    while done < windows and (done == 0 or len(running) > 1):
        part = range(done, min(max(first, 2 * done), windows))
        new = score(running, part)
        found = {name: found[name] + new[name] if done else new[name] for name in running}
        leader = min(found.values(), key=lambda scores: scores.ce)
        running = [name for name in running if found[name] is leader or _within(found[name], leader, margin)]
        done = part.stop
    return {name: found[name] for name in running}


def _within(row: Scores, leader: Scores, margin: float) -> bool:
    return row.interval(minus=leader, level=LEVEL)[0] <= margin
