"""The frame of every command that writes a folder, in one order: check, load and complete, finished?, workspace, publish."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stitch.errors import UsageError
from stitch.files.finished import finished
from stitch.files.folders import publish
from stitch.files.heap import give_back
from stitch.files.left import PUBLISHING
from stitch.files.output import check_output
from stitch.files.stages import entered
from stitch.files.workspace import check_workspace, workspace


@dataclass
class Clock:
    """Seconds that stages took, by name. After each, what it no longer needs goes back to the system."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        entered(name)
        yield
        give_back()
        self.seconds[name] = round(time.perf_counter() - start, 2)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is left to do once models are loaded and settings complete.

    `make(scratch, output)` creates the folder `output`, fills it and returns the report. It may keep intermediate files in
    `scratch`; they are there again when an interrupted run is resumed. `request` decides the result: a resumed run must
    have the same, and a job without one cannot be resumed. `name` is the output folder where the caller names none. `plan`
    returns what the job would do and cost, see `planning`.
    """

    make: Callable[[Path, Path], dict]
    request: dict = field(default_factory=dict)
    name: str = ""
    plan: Callable[[], Any] | None = None


class _Planned(Exception):
    """Leaves `run` and its callers once the plan is known."""


_plans: ContextVar[list[Any] | None] = ContextVar("plans", default=None)


@contextmanager
def planning() -> Iterator[list[Any]]:
    """Inside, `run` checks a request and loads what it needs, but then ends the block.

    The list has the seconds that this took, and the job's plan.
    """
    plans: list[Any] = []
    token = _plans.set(plans)
    try:
        yield plans
    except _Planned:
        pass
    finally:
        _plans.reset(token)


def run(
    command: str,
    plan: Callable[[], Job],
    out: Path | None,
    *,
    overwrite: bool = False,
    resume: bool = False,
    restart: bool = False,
) -> tuple[dict, Path]:
    """Runs a job and returns its report and its folder, which appears whole or not at all.

    `plan` loads what the job needs and checks the request; it is called once it is known that `out` may be written.
    After an interrupt, a call with `resume` and the same request goes on with the intermediate files, and one with `restart`
    removes them and begins again. Without either they are left as they are, and nothing is done.
    Raises UsageError when `out` may not be replaced, StitchError when the disk refuses.
    """
    if resume and restart:
        raise UsageError("`resume` and `restart` do not go together: one goes on, the other begins again.")
    if out is not None:
        if not resume:
            check_output(out, overwrite)
        check_workspace(out, command, resume=resume, restart=restart)
    start = time.perf_counter()
    job = plan()
    out = out or Path(job.name)
    if (plans := _plans.get()) is not None:
        assert job.plan is not None, f"`{command}` has no plan"
        plans += [time.perf_counter() - start, job.plan()]
        raise _Planned
    with workspace(out, command, job.request, resume=resume, restart=restart) as scratch:
        if resume and (report := finished(out, job.request, scratch)) is not None:
            return report, out
        check_output(out, overwrite)
        output = scratch / "output"
        shutil.rmtree(output, ignore_errors=True)
        report = job.make(scratch, output)
        entered(PUBLISHING)
        publish(output, out, scratch, command, overwrite=overwrite)
    return report, out
