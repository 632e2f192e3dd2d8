"""The folder for unfinished work beside the output: removed when the work is done, kept for as long as it may be gone on with.

One run owns it. No other run deletes what is in it unless it is told to begin again (`restart`), also if it has another request.
"""

import errno
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from matching.errors import MatchError
from sae.errors import SAEError
from stitch.errors import DiskError, Interrupted, StitchError, Terminated, UsageError
from stitch.files.left import Left, left_in, write_left
from stitch.files.owner import LOCK, OWNER, busy, discard, owned, owner_of
from stitch.files.refused import refusal
from stitch.files.registered import forget, register
from stitch.files.stages import current, inside
from stitch.files.unfinished import restore, work_folder

REFUSALS = (StitchError, SAEError, MatchError)  # will come again if the same is asked for again


@contextmanager
def workspace(
    out: Path, command: str, request: dict | None = None, *, resume: bool = False, restart: bool = False
) -> Iterator[Path]:
    """A folder for intermediate files, empty or, with `resume`, as an interrupted run of the same request left it.

    `request` decides the result; without one the work cannot be gone on with, and nothing is kept. An interrupt, a disk that
    refuses and an unexpected error keep the folder for `resume`. Success removes it, and so does an error that the same request
    would meet again, unless work of an earlier run is in it.
    Raises: UsageError where another run writes, and where an interrupted run would be lost; StitchError when the disk refuses.
    """
    folder = work_folder(out)
    with ExitStack() as stack:
        goes_on = _enter(stack, out, command, request or {}, resume, restart)
        try:
            yield folder
        except BaseException as error:
            with suppress(OSError):
                restore(out)
            is_kept = bool(request) and _may_go_on(error, goes_on)
            if not is_kept:
                _remove(folder)
            if isinstance(error, KeyboardInterrupt) and is_kept:
                raise (Terminated if isinstance(error, Terminated) else Interrupted)(folder) from None
            if (refused := refusal(error)) is not None:
                raise _refused_by_disk(out, refused, is_kept) from error
            raise
        _remove(folder)


def check_workspace(out: Path, command: str, *, resume: bool = False, restart: bool = False) -> None:
    """A look before any work. Raises: UsageError where another run writes, and where an interrupted run would be lost."""
    folder = work_folder(out)
    if (owner := owner_of(folder)) is not None:
        raise busy(folder, owner)
    left = left_in(folder)
    if left is not None and left.can_go_on:
        _check_left(left, command, resume or restart)


def short_name(model: str) -> str:
    """What a model is called in the name of an output folder."""
    return model.rstrip("/").replace(":", "-").rpartition("/")[2]


def _enter(stack: ExitStack, out: Path, command: str, request: dict, resume: bool, restart: bool) -> bool:
    """Owns the folder and prepares it. Returns whether it has work to go on with."""
    folder = work_folder(out)
    try:
        stack.enter_context(owned(folder))
        restore(out)
        goes_on = _goes_on(left_in(folder), command, request, resume, restart)
        if not goes_on:
            _begin(folder, command, request)
    except OSError as error:
        raise DiskError(
            f"out must be writable; {out.parent} is not: {error.strerror}. Choose another folder."
        ) from error
    if current() is None:  # what is inside another work folder is found with that
        register(folder)
    stack.enter_context(inside(folder))
    return goes_on


def _goes_on(left: Left | None, command: str, request: dict, resume: bool, restart: bool) -> bool:
    """Whether the work that is there is what is asked for. Raises: UsageError where it is not, and would be lost."""
    if left is None or not left.can_go_on:
        return False
    _check_left(left, command, resume or restart)
    if restart:
        return False
    if left.request != request:
        changed = sorted(
            key for key in request.keys() | left.request.keys() if request.get(key) != left.request.get(key)
        )
        raise UsageError(
            f"`resume` needs the settings of the interrupted run; {', '.join(changed)} differ: give the same settings, choose "
            "another `out`, or set `restart` to begin again."
        )
    return True


def _check_left(left: Left, command: str, decided: bool) -> None:
    """Raises: UsageError where an interrupted run of another command is there, or of this one and nobody `decided` about it."""
    of = f"`stitch {left.command}`" if left.command else "run"
    there = f"{left.folder} holds an interrupted {of} ({left.in_words})"
    if left.command and left.command != command:
        raise UsageError(
            f"{there}: go on with that command, choose another `out`, or remove it by `stitch workspace clean {left.folder}`."
        )
    if not decided:
        raise UsageError(f"{there}: set `resume` to go on or `restart` to begin again.")


def _begin(folder: Path, command: str, request: dict) -> None:
    """Empties the folder and notes what is to be done there. Where the disk refuses, nothing is left of it."""
    _clear(folder)
    try:
        write_left(folder, command, request)
    except OSError:
        with suppress(OSError):
            _clear(folder)
        raise


def _clear(folder: Path) -> None:
    """Empties an owned folder."""
    for path in folder.iterdir():
        if path.name not in (LOCK, OWNER):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def _remove(folder: Path) -> None:
    discard(folder)
    forget(folder)


def _may_go_on(error: BaseException, goes_on: bool) -> bool:
    """Whether the same request may end otherwise after this error; work of an earlier run is kept in any case."""
    is_refusal = isinstance(error, REFUSALS) and not isinstance(error, DiskError)
    return goes_on or not is_refusal or isinstance(error.__cause__, OSError)  # such as a network that fails


def _refused_by_disk(out: Path, error: OSError | DiskError, is_kept: bool) -> DiskError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    is_denied = isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
    mend = "make it writable" if is_denied else "free space"
    then = (
        f"What is done is kept: {mend} and set `resume`" if is_kept else f"{mend.capitalize()} or choose another `out`"
    )
    return DiskError(f"writing to {out.parent} failed: {reason}. {then}.")
