"""Two runs into one folder: one of them works, the other is refused, and an owner that has ended is no obstacle."""

import errno
import fcntl
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from stitch.errors import UsageError
from stitch.files import owner as owners
from stitch.files import process
from stitch.files.job import Job, run
from stitch.files.owner import LOCK, OWNER, discard, owned, owner_of
from stitch.files.process import Process
from stitch.files.workspace import workspace

ROOT = Path(__file__).parent.parent
HOLD = """
import sys, time
from pathlib import Path
from stitch.files import owner
if sys.argv[2] == "without":
    owner.fcntl = None
with owner.owned(Path(sys.argv[1])):
    print("owns", flush=True)
    time.sleep(60)
"""


@pytest.fixture(params=["with", "without"])
def locks(request, monkeypatch) -> str:
    """File systems with flock, and those without."""
    monkeypatch.setattr(owners, "PAUSE", 0.01)
    if request.param == "without":

        def refuses(*_):
            raise OSError(errno.ENOTSUP, "Operation not supported")

        monkeypatch.setattr(fcntl, "flock", refuses)
    return request.param


def holding(folder: Path, locks: str) -> subprocess.Popen:
    """Another process that owns the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), locks],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout and process.stdout.readline() == "owns\n"
    return process


def test_a_second_run_is_refused_in_one_line_and_follows_when_the_first_is_killed(locks: str, tmp_path: Path):
    def make(scratch: Path, output: Path) -> dict:
        output.mkdir()
        return {}

    folder = tmp_path / ".out.partial"
    with holding(folder, locks) as first:
        found = owner_of(folder)
        assert found and found.process.pid == first.pid
        for options in ({}, {"resume": True}, {"restart": True}, {"overwrite": True}):
            with pytest.raises(UsageError) as refusal:
                run("join", lambda: Job(make=make), tmp_path / "out", **options)
            line = str(refusal.value)
            assert (
                f"process {first.pid} on" in line and "wait for it or choose another `out`" in line and "\n" not in line
            )
        with pytest.raises(UsageError, match="out must have one writer"), workspace(tmp_path / "out", "join"):
            pass
        first.kill()
        first.wait()
        assert (folder / LOCK).exists() and (folder / OWNER).exists() and owner_of(folder) is None
        run("join", lambda: Job(make=make), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_two_runs_in_one_process_are_told_apart_too(locks: str, tmp_path: Path):
    with owned(tmp_path / "w"), pytest.raises(UsageError, match=f"process {os.getpid()} on"), owned(tmp_path / "w"):
        pass
    with owned(tmp_path / "w"):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "left",
    [
        replace(Process.this(), start="boot-of-yesterday 12345"),  # its pid is that of a living process by now
        replace(Process.this(), pid=2**22 + 1),  # more than Linux gives
    ],
)
def test_an_owner_that_has_ended_is_followed(left: Process, locks: str, tmp_path: Path):
    folder = tmp_path / "w"
    folder.mkdir()
    (folder / LOCK).touch()
    (folder / OWNER).write_text(json.dumps({**left.__dict__, "since": 0.0}))
    (folder / "shard").touch()
    assert owner_of(folder) is None
    with owned(folder):
        found = owner_of(folder)
        assert found and found.process == Process.this() and time.time() - found.since < 60
    assert [path.name for path in folder.iterdir()] == ["shard"]


def test_a_zombie_has_ended():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        found = replace(Process.this(), pid=child.pid, start=process.start_of(child.pid))
        assert found.may_be_alive()
        assert child.stdin
        child.stdin.close()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not found.may_be_alive()


def test_an_owner_on_another_machine_is_believed_where_there_are_no_locks(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(owners, "fcntl", None)
    monkeypatch.setattr(owners, "PAUSE", 0.01)
    folder = tmp_path / "w"
    folder.mkdir()
    other = replace(Process.this(), host="elsewhere", pid=2**22 + 1)
    (folder / OWNER).write_text(json.dumps({**other.__dict__, "since": 0.0}))
    with pytest.raises(UsageError, match="on elsewhere, since 1970-01-0"), owned(folder):
        pass
    assert (folder / OWNER).exists()


def test_a_half_written_owner_is_waited_for_and_an_old_one_is_not(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(owners, "fcntl", None)
    monkeypatch.setattr(owners, "PAUSE", 0.01)
    folder = tmp_path / "w"
    folder.mkdir()
    (folder / OWNER).touch()
    with pytest.raises(UsageError, match="another process writes"), owned(folder):
        pass
    os.utime(folder / OWNER, (0, 0))
    with owned(folder):
        pass


def test_a_folder_that_its_owner_removes_is_made_again_by_the_next(locks: str, tmp_path: Path):
    folder = tmp_path / "w"
    with owned(folder):
        discard(folder)
        with owned(folder):
            assert owner_of(folder)
        assert not folder.exists()
    assert not list(tmp_path.iterdir())


def _work(folder: Path, count: int, locks: str) -> None:
    if locks == "without":
        owners.fcntl = None
    owners.TRIES, owners.PAUSE = 2000, 0.001
    for _ in range(count):
        with owned(folder):
            (folder / "alone").mkdir()  # fails where another one owns the folder as well
            time.sleep(0.001)
            (folder / "alone").rmdir()
            discard(folder)


@pytest.mark.parametrize("way", ["with", "without"])
def test_processes_that_take_turns_are_never_two(way: str, tmp_path: Path):
    context = multiprocessing.get_context("fork" if threading.active_count() == 1 else "spawn")
    workers = [context.Process(target=_work, args=(tmp_path / "w", 15, way)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_had_begun_to_remove_is_removed(tmp_path: Path):
    (tmp_path / ".out.partial.removed-77").mkdir()
    with workspace(tmp_path / "out", "join", {"seed": 0}):
        pass
    assert not list(tmp_path.iterdir())


def test_a_lock_on_a_folder_that_was_removed_meanwhile_does_not_count(tmp_path: Path, monkeypatch):
    folder, real = tmp_path / "w", owners._flock
    removed = []

    def flock(descriptor: int) -> bool | None:
        if not removed:  # its owner ends between the opening of the file and the lock, and another one makes it again
            removed.append(folder)
            discard(folder)
            folder.mkdir()
            (folder / LOCK).touch()
        return real(descriptor)

    monkeypatch.setattr(owners, "_flock", flock)
    with owned(folder):
        assert removed and (folder / LOCK).exists() and owner_of(folder)


def test_a_folder_that_goes_while_it_is_made_is_made_again(tmp_path: Path, monkeypatch):
    mkdir, calls = os.mkdir, []

    def late(path, *rest) -> None:
        calls.append(path)
        if len(calls) == 1:  # it is there, and its owner removes it before this process looks again
            raise FileExistsError(errno.EEXIST, "File exists", str(path))
        mkdir(path, *rest)

    monkeypatch.setattr(owners, "PAUSE", 0.01)
    monkeypatch.setattr(os, "mkdir", late)
    with owned(tmp_path / "w"):
        assert len(calls) == 2


def test_a_file_in_the_place_of_the_folder_is_an_error(tmp_path: Path):
    (tmp_path / "w").touch()
    with pytest.raises(FileExistsError), owned(tmp_path / "w"):
        pass


def test_of_two_that_follow_an_owner_without_locks_one_is_refused(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(owners, "fcntl", None)
    monkeypatch.setattr(owners, "PAUSE", 0.01)
    file = tmp_path / "w" / OWNER
    file.parent.mkdir()
    file.write_text(json.dumps({**replace(Process.this(), pid=2**22 + 1).__dict__, "since": 0.0}))
    faster = json.dumps({**Process.this().__dict__, "since": 1.0})
    rename = os.rename

    def late(source, target) -> None:
        if Path(source) == file and "4194305" in file.read_text():
            file.write_text(faster)
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    with pytest.raises(UsageError, match="one writer"), owned(file.parent):
        pass
    assert file.read_text() == faster


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path):
    code = """
import os, sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from stitch.files.process import end_with_parent
with ProcessPoolExecutor(1, get_context("fork"), end_with_parent) as pool:
    print(pool.submit(os.getpid).result(), flush=True)
    time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(50):
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{worker}/stat").exists() and "Z" in Path(f"/proc/{worker}/stat").read_text().split()[2]:
            return  # nobody has taken notice of its end
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker goes on")


def test_a_folder_that_cannot_be_made_is_not_taken_for_another_writers(tmp_path, monkeypatch):
    """/proc refuses a new folder as if something on its path were missing."""

    def refused(folder: Path, **_):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(folder))

    monkeypatch.setattr(owners, "PAUSE", 0)
    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(FileNotFoundError), owned(tmp_path / "work"):
        pass
