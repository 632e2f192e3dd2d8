"""A forked process in which cases are tried, with a limit on memory and a watchdog outside it, which no C code can block."""

import contextlib
import multiprocessing
import os
import resource
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from fuzz.door import Door
from fuzz.outcome import Outcome, outcome

SECONDS = 10.0
PATIENCE = 6  # times as long, for a process that waits
MEMORY = 768 << 20  # bytes beyond what the process has when it is forked: a few hundred MB, and what allocators reserve


class Worker:
    """Tries the cases of one door. A process that hangs or dies is replaced by another.

    A process of its own for every case would take a hundred times as long.
    """

    def __init__(self, door: Door, *, seconds: float = SECONDS, memory: int = MEMORY) -> None:
        self.door, self.seconds, self.memory = door, seconds, memory
        self.process: Any = None
        self.connection: Connection

    def __enter__(self) -> "Worker":
        self.door.ready()
        self.folder = tempfile.TemporaryDirectory(prefix="stitch-fuzz-")
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self.folder.cleanup()

    def tried(self, case: Any) -> Outcome:
        if self.process is None:
            self._begin()
        self.connection.send(case)
        if not self._answers():
            self._end()
            return Outcome("hung", f"no answer in {self.seconds:g} s")
        try:
            return self.connection.recv()
        except EOFError:
            self._end()
            return Outcome("unexpected", f"the process died with exit code {self.code}")

    def _answers(self) -> bool:
        """Whether there is an answer in time. The time of the process counts, where the machine is busy with others."""
        began, latest = _seconds_of(self.process.pid), time.monotonic() + PATIENCE * self.seconds
        while not self.connection.poll(self.seconds):
            spent = _seconds_of(self.process.pid) - began
            if not began or spent >= 0.9 * self.seconds or time.monotonic() > latest:
                return False
        return True

    def _begin(self) -> None:
        fork = multiprocessing.get_context("fork")
        self.connection, theirs = fork.Pipe()
        self.process = fork.Process(
            target=_work, args=(self.door, theirs, self.memory, Path(self.folder.name)), daemon=True
        )
        self.process.start()
        theirs.close()

    def _end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.code = self.process.exitcode
            self.connection.close()
            self.process = None


def _work(door: Door, connection: Connection, memory: int, folder: Path) -> None:
    os.chdir(folder)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        torch.set_num_threads(1)
        if statm := _address_space():
            resource.setrlimit(resource.RLIMIT_AS, (statm + memory, statm + memory))
        while True:
            try:
                case = connection.recv()
            except EOFError:  # the other side is gone
                return
            connection.send(outcome(door, case, folder))


def _seconds_of(process: int) -> float:
    """Seconds that a process has computed, 0 where the system does not say."""
    place = Path(f"/proc/{process}/stat")
    if not place.is_file():
        return 0.0
    user, system = place.read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK") or 1e-9


def _address_space() -> int:
    """Bytes of this process, 0 where the system does not say."""
    place = Path("/proc/self/statm")
    return int(place.read_text().split()[0]) * resource.getpagesize() if place.is_file() else 0
