"""Progress on standard error: bars on a terminal, a line per stage and half minute elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sae.messages import printable

BETWEEN_LINES = 30  # seconds

Update = Callable[[str, int, int], None]  # stage, done, total


@contextmanager
def progress(quiet: bool) -> Iterator[Update]:
    """What the library calls with a stage, and how much of it is done."""
    if quiet:
        yield lambda stage, done, total: None
    elif sys.stderr.isatty():
        with _bars() as update:
            yield update
    else:
        yield _Lines().update


class _Pace:
    """How fast the present stage goes."""

    def __init__(self) -> None:
        self.stage, self.done, self.first, self.began = "", 0, 0, 0.0

    def starts(self, stage: str, done: int) -> bool:
        """Whether this is another stage; the next split of the same stage starts over as well."""
        starts = stage != self.stage or done < self.done
        if starts:
            self.stage, self.first, self.began = stage, done, time.monotonic()
        self.done = done
        return starts

    def rate(self) -> float:
        """Per second; 0 as long as it cannot be told."""
        seconds = time.monotonic() - self.began
        return (self.done - self.first) / seconds if seconds > 1 else 0.0


class _Lines:
    def __init__(self) -> None:
        self.pace, self.said = _Pace(), 0.0

    def update(self, stage: str, done: int, total: int) -> None:
        if self.pace.starts(stage, done):
            self.said = 0.0
        now = time.monotonic()
        if done < total and now - self.said <= BETWEEN_LINES:
            return
        self.said, rate = now, self.pace.rate()
        pace = f", {rate:,.0f}/s" if rate else ""
        left = f", {(total - done) / rate:,.0f} s left" if rate and done < total else ""
        print(f"{printable(stage)}: {done:,} of {total:,}{pace}{left}", file=sys.stderr, flush=True)


@contextmanager
def _bars() -> Iterator[Update]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = [
        TextColumn("{task.description:<36}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    ]
    pace, task = _Pace(), TaskID(0)
    with Progress(*columns, console=Console(stderr=True)) as bars:

        def update(stage: str, done: int, total: int) -> None:
            nonlocal task
            if pace.starts(stage, done):
                task = bars.add_task(printable(stage), total=total, rate="")
            rate = pace.rate()
            bars.update(task, completed=done, rate=f"{rate:,.0f}/s" if rate else "")

        yield update
