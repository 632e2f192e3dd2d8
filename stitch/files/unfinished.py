"""Where unfinished work lies: beside the output, under a name of its own."""

import os
from pathlib import Path

SUFFIX = ".partial"
REPLACED = "replaced"  # what the new folder takes the place of, until the work folder is removed


def work_folder(target: Path) -> Path:
    """Where unfinished work for `target` lies: beside it."""
    return target.parent / f".{target.name}{SUFFIX}"


def is_work_folder(folder: Path) -> bool:
    """Whether a folder has such a name."""
    return folder.name.startswith(".") and folder.name.endswith(SUFFIX)


def target_of(folder: Path) -> Path:
    """The output that a work folder is for."""
    return folder.parent / folder.name[1 : -len(SUFFIX)]


def restore(target: Path) -> None:
    """Puts back the folder that a run had moved away when it was killed before the new one took its place."""
    replaced = work_folder(target) / REPLACED
    if replaced.exists() and not target.exists():
        os.replace(replaced, target)
