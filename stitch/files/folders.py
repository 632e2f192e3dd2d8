"""Output folders: filled beside their place, flushed to disk, renamed into it."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from stitch.files.durable import flush, flush_tree, share_tree
from stitch.files.output import check_output, mark
from stitch.files.unfinished import REPLACED
from stitch.files.workspace import workspace


def appear(target: Path, fill: Callable[[Path], None], command: str, *, overwrite: bool = False) -> None:
    """Fills a folder beside `target`, flushes it to disk, renames it into place; removes it if anything goes wrong.

    Raises UsageError when `target` exists and may not be replaced, StitchError when the disk refuses.
    """
    check_output(target, overwrite)
    with workspace(target, command) as work:
        new = work / "new"
        new.mkdir()
        fill(new)
        publish(new, target, work, command, overwrite=overwrite)


def publish(folder: Path, target: Path, work: Path, command: str, *, overwrite: bool = False) -> None:
    """Marks a finished `folder` as written by `command`, flushes it and makes it `target`; what it replaces goes to `work`."""
    mark(folder, command)
    share_tree(folder)
    flush_tree(folder)
    check_output(target, overwrite)  # again: hours may lie between the first look and this one
    replaced = work / REPLACED
    if target.exists():
        os.replace(target, replaced)
    is_there = False
    try:
        os.replace(folder, target)
        is_there = True
        flush(target.parent)
    except OSError:
        if is_there:
            os.replace(target, folder)
        if replaced.exists():
            os.replace(replaced, target)
        raise


def to_json(report: dict) -> bytes:
    """The report as the bytes of report.json: indented, with sorted keys."""
    return (json.dumps(report, indent=2, sort_keys=True) + "\n").encode()
