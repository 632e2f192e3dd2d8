"""Many cases at one door, counted."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

from fuzz.door import Door
from fuzz.outcome import BAD, Outcome
from fuzz.worker import SECONDS, Worker

# What differs between two messages of one fault.
PARTICULARS = re.compile(r"""(['"]).*?\1|\d+|[\[{(].*""")


@dataclass
class Count:
    """Outcomes at a door by kind; and for each fault the number of cases, the first of these, and what came of it."""

    door: str
    of: Counter[str] = field(default_factory=Counter)
    times: Counter[str] = field(default_factory=Counter)
    first: dict[str, tuple[Any, Outcome]] = field(default_factory=dict)

    def add(self, case: Any, one: Outcome) -> None:
        self.of[one.kind] += 1
        if one.kind in BAD:
            fault = f"{one.kind} {PARTICULARS.sub('…', one.why)[:100]}"
            self.times[fault] += 1
            self.first.setdefault(fault, (case, one))

    @property
    def bad(self) -> int:
        return sum(self.of[kind] for kind in BAD)

    def faults(self, most: int = 20) -> list[str]:
        """What went wrong, the most frequent first, each with a case that shows it."""
        found = []
        for fault, times in self.times.most_common(most):
            case, one = self.first[fault]
            found.append(f"{self.door}, {times} times, {one.kind}: {one.why}\n    {short(case)}")
        return found


def short(case: Any) -> str:
    text = repr(case)
    return text if len(text) <= 400 else f"{text[:250]} … {text[-100:]} ({len(text):,} characters)"


def tried(
    door: Door, cases: int, *, start: int = 0, seconds: float = SECONDS, each: Callable[[], Any] | None = None
) -> Count:
    """The kept cases, and `cases` that are made from the seed `start`. `each` is called after each of them."""
    count = Count(door.name)
    with Worker(door, seconds=seconds) as worker:
        for case in door.kept:
            count.add(case, worker.tried(case))
        if not cases:
            return count

        # Nothing fails here, so that Hypothesis goes on to the end; what is found is kept by hand, as a case of the door.
        @seed(start)
        @settings(
            max_examples=cases,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(door.cases)
        def attempt(case: Any) -> None:
            count.add(case, worker.tried(case))
            if each:
                each()

        attempt()
    return count
