"""Files that are complete or absent: written to a temporary name, flushed to disk where that matters, and renamed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def flush(path: Path) -> None:
    """Waits until the file or folder `path` is on the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def share_tree(folder: Path) -> None:
    """Lets those read the files of `folder` who may read it, as the umask says: safetensors' own are for their owner alone."""
    mode = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)


def flush_tree(folder: Path) -> None:
    """Flushes everything in `folder`, then the folder itself, so that a rename that follows cannot outlive the content."""
    for path in sorted(folder.rglob("*")):
        flush(path)
    flush(folder)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to. On success it replaces `path` in one step, on an exception it is removed.

    A reader therefore never sees half a file, and neither does a later run when this process is killed. Nothing is flushed: this
    is for intermediate files and caches, which are made again when a power failure loses them.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
