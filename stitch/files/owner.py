"""One owner of a work folder: two runs that fill one folder would mix their files.

The owner holds a lock (flock) on a file in the folder, which the system takes away when the process ends, however it ends. Where
the file system has no such locks, a file that only one process can create names the owner: pid, machine and start time.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from stitch.errors import UsageError
from stitch.files.left import read_time
from stitch.files.process import Process
from stitch.files.unfinished import target_of

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK, OWNER = "owner.lock", "owner.json"
TRIES, PAUSE = 5, 0.1  # seconds; another process may just look at the lock, or remove the folder
HALF_WRITTEN = 10.0  # seconds in which a file without content is one that is being written


@dataclass(frozen=True)
class Owner:
    """A process and since when it owns the folder, in seconds since 1970."""

    process: Process
    since: float

    @property
    def in_words(self) -> str:
        began = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.since))
        return f"process {self.process.pid} on {self.process.host}, since {began}"


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Makes `folder` and owns it inside the block. An owner that has ended is followed.

    Raises: UsageError when a living process owns it; OSError when the disk refuses.
    """
    try:
        lock = _claim(folder)
    except OSError:
        _remove_if_empty(folder)
        raise
    try:
        yield
    finally:
        _release(folder, lock)


def owner_of(folder: Path) -> Owner | None:
    """The living owner of `folder`; None where there is none."""
    found = _read(folder / OWNER)
    locked = _is_locked(folder / LOCK)
    if locked is None:
        return found if found and found.process.may_be_alive() else None
    return (found or Owner(Process(0, "unknown", ""), time.time())) if locked else None


def busy(folder: Path, owner: Owner | None) -> UsageError:
    """The error where another run writes."""
    who = owner.in_words if owner else "another process"
    return UsageError(
        f"out must have one writer; {who} writes to {target_of(folder)}: wait for it or choose another `out`."
    )


def discard(folder: Path) -> None:
    """Removes an owned folder: first from its place, so that the next owner never meets files that are being removed."""
    remove_what_is_discarded(folder)
    away = folder.with_name(f"{folder.name}.removed-{os.getpid()}")
    try:
        os.rename(folder, away)
    except OSError:
        away = folder
    shutil.rmtree(away, ignore_errors=True)


def remove_what_is_discarded(folder: Path) -> None:
    """Removes what killed processes had begun to remove."""
    for away in folder.parent.glob(f"{folder.name}.removed-*"):
        shutil.rmtree(away, ignore_errors=True)


def _claim(folder: Path) -> int | None:
    """The descriptor of the lock, None without locks."""
    missing = None
    for attempt in range(TRIES):
        if attempt:
            time.sleep(PAUSE)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            found, lock = _try(folder)
            missing = None
        except FileNotFoundError as error:  # the folder was removed by its owner, or cannot be made, as in /proc
            missing = error
            continue
        except FileExistsError:  # as above: it was there when it was made, and gone when `mkdir` looked what it is
            if folder.is_file() or folder.is_symlink():
                raise
            continue
        if found:
            return lock
    if missing and not folder.exists():
        raise missing
    raise busy(folder, owner_of(folder))


def _try(folder: Path) -> tuple[bool, int | None]:
    """Whether the folder is now owned, and the descriptor of the lock."""
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        has_locks = _flock(descriptor)
        if has_locks is None:
            os.close(descriptor)
            return _create(folder / OWNER), None
        if has_locks and _is_at(descriptor, folder / LOCK):
            _write(folder / OWNER, os.O_TRUNC)
            return True, descriptor
    except BaseException:
        with suppress(OSError):
            os.close(descriptor)
        raise
    os.close(descriptor)
    return False, None


def _flock(descriptor: int) -> bool | None:
    """Whether the lock was taken; None where the file system or the machine has none."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_locked(lock: Path) -> bool | None:
    """Whether another process holds the lock; None where that cannot be known."""
    try:
        descriptor = os.open(lock, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        taken = _flock(descriptor)
        return None if taken is None else not taken
    finally:
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one at `path`: its owner may have removed the folder since it was opened."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _create(file: Path) -> bool:
    """Creates the owner's file, without locks. That of an owner that has ended is replaced."""
    before = _content(file)
    if before is not None:
        found = _read(file)
        if found and found.process.may_be_alive():
            return False
        with suppress(FileNotFoundError):
            if not found and time.time() - file.stat().st_mtime < HALF_WRITTEN:
                return False
        aside = file.with_name(f"{OWNER}.{os.getpid()}")
        os.rename(file, aside)  # one process alone can do this
        taken = _content(aside)
        if taken != before:  # another one was faster: this is its file
            os.rename(aside, file)
            return False
        aside.unlink()
    try:
        _write(file, os.O_EXCL)
    except FileExistsError:
        return False
    return True


def _release(folder: Path, lock: int | None) -> None:
    """Gives the folder up, unless it was removed and is another process's by now."""
    if lock is not None:
        if _is_at(lock, folder / LOCK):
            for name in (OWNER, LOCK):
                with suppress(OSError):
                    (folder / name).unlink()
        os.close(lock)
    elif (found := _read(folder / OWNER)) and found.process == Process.this():
        for name in (OWNER, LOCK):
            with suppress(OSError):
                (folder / name).unlink()
    _remove_if_empty(folder)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _write(file: Path, flag: int) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | flag, 0o666)
    try:
        os.write(descriptor, json.dumps({**asdict(Process.this()), "since": time.time()}).encode())
    finally:
        os.close(descriptor)


def _content(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None


def _read(file: Path) -> Owner | None:
    try:
        found = json.loads(file.read_bytes())
        pid, host, start, since = found["pid"], found["host"], found["start"], read_time(found["since"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    is_process = type(pid) is int and 0 < pid < 2**31 and isinstance(host, str) and isinstance(start, str)
    return Owner(Process(pid, host, start), since) if is_process and since is not None else None
