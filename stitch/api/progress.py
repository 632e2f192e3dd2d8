"""Progress on standard error: bars on a terminal, elsewhere a line per stage, and more of a stage that takes long."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Lock, Thread

from sae.messages import printable

FIRST_LINE, BETWEEN_LINES = 5, 30  # seconds

Update = Callable[[str, int, int], None]  # stage, done, total


@contextmanager
def progress(quiet: bool) -> Iterator[Update]:
    """What the library calls with a stage, and how much of it is done."""
    if quiet or sys.stderr is None:  # which it is where standard error is closed
        yield lambda stage, done, total: None
    elif sys.stderr.isatty():
        with _bars() as update:
            yield update
    else:
        lines = _Lines()
        with _reminded(lines):
            yield lines.update


class _Pace:
    """How fast a stage goes."""

    def __init__(self, stage: str = "", done: int = 0) -> None:
        self.stage, self.done, self.first, self.began = stage, done, done, time.monotonic()
        self.moved = self.began  # when a step was heard of last

    def is_other(self, stage: str, done: int) -> bool:
        """Whether this is another stage; the next split of the same stage starts over as well."""
        return stage != self.stage or done < self.done

    def rate(self) -> float:
        """Per second; 0 as long as it cannot be told."""
        seconds = time.monotonic() - self.began
        return (self.done - self.first) / seconds if seconds > 1 else 0.0


def _per_second(rate: float) -> str:
    return f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s"


class _Lines:
    """A line when a stage ends. One that lasts has a line after some seconds, and one every half minute."""

    def __init__(self) -> None:
        self.pace, self.stream, self.total = _Pace(), sys.stderr, 0
        self.said: float | None = None  # when the stage's last line was printed
        self.lock = Lock()
        self.is_over = False

    def update(self, stage: str, done: int, total: int) -> None:
        with self.lock:
            if self.is_over:  # a loop that an error left may be closed, and heard of, after the error has been printed
                return
            if self.is_open and self.said is None and self.pace.is_other(stage, done):
                self._say("")  # what came of a stage that was left; what it took cannot be told
            if not self.is_open or self.pace.is_other(stage, done):
                self.pace, self.said = _Pace(stage, done), None
            if done != self.pace.done:
                self.pace.done, self.pace.moved = done, time.monotonic()
            self.total = total
            if not self.is_open and total:
                self._say(self._how_fast())
        self.remind()

    def remind(self) -> None:
        """Prints a line if one is due, also while a step takes long."""
        with self.lock:
            since, wait = (self.pace.began, FIRST_LINE) if self.said is None else (self.said, BETWEEN_LINES)
            if self.is_open and time.monotonic() - since > wait:
                self._say(self._how_fast())

    @property
    def is_open(self) -> bool:
        return self.pace.done < self.total

    def _how_fast(self) -> str:
        """The rate and the time left, or how long there was no step where there was none since the last line."""
        if self.is_open and self.said is not None and self.pace.moved <= self.said:
            return f", no step for {time.monotonic() - self.pace.moved:,.0f} s"
        if not (rate := self.pace.rate()):
            return ""
        left = f", {(self.total - self.pace.done) / rate:,.0f} s left" if self.is_open else ""
        return f", {_per_second(rate)}{left}"

    def _say(self, how_fast: str) -> None:
        self.said, pace = time.monotonic(), self.pace
        print(f"{printable(pace.stage)}: {pace.done:,} of {self.total:,}{how_fast}", file=self.stream, flush=True)


@contextmanager
def _reminded(lines: _Lines) -> Iterator[None]:
    """Inside, a thread reminds of lines that are due."""
    over = Event()

    def watch() -> None:
        while not over.wait(1):
            lines.remind()

    thread = Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        lines.is_over = True


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
    with Progress(*columns, console=Console(file=sys.stderr)) as bars:

        def update(stage: str, done: int, total: int) -> None:
            nonlocal task, pace
            if pace.is_other(stage, done):
                pace = _Pace(stage, done)
                task = bars.add_task(printable(stage), total=total, rate="")
            pace.done = done
            rate = pace.rate()
            bars.update(task, completed=done, total=total, rate=_per_second(rate) if rate else "")

        yield update
