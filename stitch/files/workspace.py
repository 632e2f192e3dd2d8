"""The folder for unfinished work beside the output: removed on success and on failure, kept after an interrupt."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stitch.errors import StitchError, UsageError
from stitch.files.durable import replacing
from stitch.files.folders import work_folder

REQUEST = "request.json"


def finished(out: Path, request: dict) -> dict | None:
    """The report of a run of the same request that was killed after its last step, whose workspace is then removed; else None."""
    report = _read(out / "report.json")
    if report is None or report["provenance"]["settings"] != request:
        return None
    shutil.rmtree(work_folder(out), ignore_errors=True)
    return report


@contextmanager
def workspace(out: Path, request: dict, resume: bool) -> Iterator[Path]:
    """A folder for intermediate files, empty or, with `resume`, as an interrupted run of the same request left it.

    An interrupt (Ctrl-C, a signal) keeps it for `resume`; success and failure remove it.
    """
    folder = work_folder(out)
    if folder.exists() and resume:
        before = _read(folder / REQUEST)
        if before is not None and before != request:
            changed = sorted(key for key in request.keys() | before.keys() if request.get(key) != before.get(key))
            raise UsageError(
                f"`resume` needs the settings of the interrupted run; {', '.join(changed)} differ: drop `resume`."
            )
    elif folder.exists():
        shutil.rmtree(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / REQUEST) as temporary:
            temporary.write_text(json.dumps(request, sort_keys=True))
    except OSError as error:
        raise StitchError(
            f"out must be writable; {out.parent} is not: {error.strerror}. Choose another folder."
        ) from error
    try:
        yield folder
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise StitchError(
            f"writing to {out.parent} failed: {error.strerror or error}. Free space or choose another `out`."
        ) from error
    except Exception:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder)


def short_name(model: str) -> str:
    """What a model is called in the name of an output folder."""
    return model.rstrip("/").replace(":", "-").rpartition("/")[2]


def _read(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):  # the run was killed before it had written the request
        return None
