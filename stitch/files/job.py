"""The frame of every command that writes a folder, in one order: check, load and complete, finished?, workspace, publish."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from stitch.files.folders import publish, restore
from stitch.files.output import check_output
from stitch.files.workspace import finished, workspace


@dataclass
class Clock:
    """Seconds that stages took, by name."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 2)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is left to do once models are loaded and settings complete.

    `make(scratch, output)` creates the folder `output`, fills it and returns the report. It may keep intermediate files in
    `scratch`; they are there again when an interrupted run is resumed. `request` decides the result: a resumed run must
    have the same, and a job without one cannot be resumed. `name` is the output folder where the caller names none.
    """

    make: Callable[[Path, Path], dict]
    request: dict = field(default_factory=dict)
    name: str = ""


def run(
    command: str, plan: Callable[[], Job], out: Path | None, *, overwrite: bool = False, resume: bool = False
) -> tuple[dict, Path]:
    """Runs a job and returns its report and its folder, which appears whole or not at all.

    `plan` loads what the job needs and checks the request; it is called once it is known that `out` may be written.
    After an interrupt, a call with `resume` and the same request goes on with the intermediate files.
    Raises UsageError when `out` may not be replaced, StitchError when the disk refuses.
    """
    if out is not None and not resume:
        check_output(out, overwrite)
    job = plan()
    out = out or Path(job.name)
    restore(out)
    if resume and (report := finished(out, job.request)) is not None:
        return report, out
    check_output(out, overwrite)
    with workspace(out, job.request, resume) as scratch:
        output = scratch / "output"
        shutil.rmtree(output, ignore_errors=True)
        try:
            report = job.make(scratch, output)
        except KeyboardInterrupt:
            if not job.request:
                shutil.rmtree(scratch, ignore_errors=True)
            raise
        publish(output, out, scratch, command, overwrite=overwrite)
    return report, out
