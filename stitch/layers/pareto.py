"""The Pareto front of models by cost and loss, and the best model within a budget."""

from collections.abc import Sequence


def front(points: Sequence[tuple[float, float]], margin: float = 0.0) -> list[int]:
    """Indices of the (cost, loss) points that no other beats in both, cheapest first.

    Point k is the best model for every budget from its own cost up to that of point k + 1. Of points equal in both, the first is
    kept. A more expensive point must be better by more than `margin`.
    """
    kept: list[int] = []
    for index in sorted(range(len(points)), key=lambda index: (*points[index], index)):
        if not kept or points[index][1] < points[kept[-1]][1] - margin:
            kept.append(index)
    return kept


def best_within(points: Sequence[tuple[float, float]], budget: float) -> int:
    """The index of the lowest loss among (cost, loss) points that cost at most `budget`, or of the cheapest point if none does.

    Ties go to the cheaper point, then to the first.
    """
    affordable = [index for index, (cost, _) in enumerate(points) if cost <= budget]
    if affordable:
        return min(affordable, key=lambda index: (points[index][1], points[index][0], index))
    return min(range(len(points)), key=lambda index: (points[index][0], index))
