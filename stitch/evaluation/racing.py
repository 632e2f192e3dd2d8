"""Scores rows on a growing sample of the text and drops those whose place is certain."""

from collections.abc import Callable, Iterable

import torch

from stitch.evaluation.scores import Scores, carried_over

FIRST = 4_096  # tokens of the first sample; every later one has twice as many
LEVEL = 0.9999  # of the intervals that drop rows, as there are many rows and several looks at each


def race(
    rows: Iterable[str],
    score: Callable[[list[str], range], dict[str, Scores]],
    windows: int,
    first: int,
    running: Callable[[dict[str, Scores]], list[str]],
) -> dict[str, Scores]:
    """Scores of all rows, each on the windows up to the one where it was dropped.

    `score` has the scores of some rows on a range of `windows`, whose order must be random. After `first` windows, twice as
    many, and so on, only the rows that `running` returns are scored further. It is given the rows that were still in.
    """
    names, done, found = list(rows), 0, {}
    while done < windows and names:
        part = range(done, min(max(first, 2 * done), windows))
        new = score(names, part)
        found |= {name: found[name] + new[name] if done else new[name] for name in names}
        names = running({name: found[name] for name in names})
        done = part.stop
    return found


def near_the_best(margin: float) -> Callable[[dict[str, Scores]], list[str]]:
    """Keeps rows that may lie within `margin` nats of the best. A single one is known to be the best: none is kept then."""

    def running(found: dict[str, Scores]) -> list[str]:
        leader = min(found.values(), key=lambda scores: scores.ce)
        near = [name for name, row in found.items() if row is leader or _lead(row, leader) <= margin]
        return near if len(near) > 1 else []

    return running


def race_against(
    name: str,
    rows: Iterable[str],
    score: Callable[[list[str], range], dict[str, Scores]],
    windows: int,
    first: int,
    always: Iterable[str],
) -> dict[str, Scores]:
    """Scores of all rows on all windows. Rows that are certain to be worse than `name` are scored on the first windows only.

    Their scores are carried over to all text with the help of `name` (see `carried_over`). Rows of `always` are scored on
    every window. `score`, `windows` and `first` are those of `race`.
    """
    kept, marks = {name, *always}, []

    def running(found: dict[str, Scores]) -> list[str]:
        marks.append(found[name])
        return [row for row in found if row in kept or _lead(found[row], found[name]) <= 0]

    found = race(rows, score, windows, first, running)
    return {row: _on_all_text(scores, marks) for row, scores in found.items()}


def _on_all_text(row: Scores, marks: list[Scores]) -> Scores:
    """A row's scores on all text, given those of another row after every part of it."""
    beside = next(mark for mark in marks if torch.equal(mark.tokens, row.tokens))
    return row if beside is marks[-1] else carried_over(row, beside, marks[-1])


def _lead(row: Scores, leader: Scores) -> float:
    """By how many nats the row is at least behind the leader."""
    return row.interval(minus=leader, level=LEVEL)[0]
