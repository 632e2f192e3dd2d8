"""The best of a list of strengths by an error that falls and then rises along it, without trying all of them."""

from collections.abc import Callable
from math import inf
from typing import TypeVar

Attempt = TypeVar("Attempt")


def descend(
    attempt: Callable[[int], Attempt],
    error: Callable[[Attempt], float],
    *,
    start: int,
    step: int,
    count: int,
    best: Attempt | None = None,
) -> Attempt:
    """Goes from place `start` of `count`, `step` places at a time, whichever way the error falls, until it does not.

    Out of infinity (nothing could be solved there) it goes up.

    `best` is the attempt at `start`, if it has been made already. The result is the lowest there is where the error has one
    valley. That of ridge regression on held-out tokens may have a second one at tiny λ: on the demo pair (13 rows, 100,000
    tokens) the lower one was missed once, by 4e-5 of the error.
    """
    found = attempt(start) if best is None else best
    place = start
    for way in (step, -step):
        while 0 <= place + way < count:
            further = attempt(place + way)
            if error(further) >= error(found) < inf:
                break
            found, place = further, place + way
        if place != start:
            break
    return found
