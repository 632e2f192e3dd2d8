"""Output folders: filled beside their place, flushed to disk, renamed into it."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from stitch.errors import StitchError
from stitch.files.durable import flush, flush_tree
from stitch.files.output import check_output, mark

REPLACED = "replaced"  # what the new folder takes the place of, until the work folder is removed


def appear(target: Path, fill: Callable[[Path], None], command: str, *, overwrite: bool = False) -> None:
    """Fills a folder beside `target`, flushes it to disk, renames it into place; removes it if anything goes wrong.

    Raises UsageError when `target` exists and may not be replaced, StitchError when the disk refuses.
    """
    check_output(target, overwrite)
    work = work_folder(target)
    new = work / "new"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        restore(target)
        shutil.rmtree(work, ignore_errors=True)
        new.mkdir(parents=True)
        fill(new)
        publish(new, target, work, command, overwrite=overwrite)
    except OSError as error:
        raise StitchError(
            f"{target} must be writable and fit the disk; got {error.strerror or error}: choose another folder."
        ) from error
    finally:
        restore(target)
        shutil.rmtree(work, ignore_errors=True)


def publish(folder: Path, target: Path, work: Path, command: str, *, overwrite: bool = False) -> None:
    """Marks a finished `folder` as written by `command`, flushes it and makes it `target`; what it replaces goes to `work`."""
    mark(folder, command)
    flush_tree(folder)
    check_output(target, overwrite)  # again: hours may lie between the first look and this one
    replaced = work / REPLACED
    if target.exists():
        os.replace(target, replaced)
    try:
        os.replace(folder, target)
    except OSError:
        if replaced.exists():
            os.replace(replaced, target)
        raise
    flush(target.parent)


def restore(target: Path) -> None:
    """Puts back the folder that a run had moved away when it was killed before the new one took its place."""
    replaced = work_folder(target) / REPLACED
    if replaced.exists() and not target.exists():
        os.replace(replaced, target)


def work_folder(target: Path) -> Path:
    """Where unfinished work for `target` lies: beside it."""
    return target.parent / f".{target.name}.partial"


def to_json(report: dict) -> bytes:
    """The report as the bytes of report.json: indented, with sorted keys."""
    return (json.dumps(report, indent=2, sort_keys=True) + "\n").encode()
