"""Which process it was: a pid alone does not say, as the system gives it to another process later."""

import os
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process. `start` tells it from a later one with the same pid; it is empty where the system does not say."""

    pid: int
    host: str
    start: str

    @classmethod
    def this(cls) -> "Process":
        pid = os.getpid()
        return cls(pid, socket.gethostname(), start_of(pid))

    def may_be_alive(self) -> bool:
        """False where it is known to have ended. Of a process on another machine that cannot be known."""
        if self.host != socket.gethostname() or os.name == "nt":
            return True
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except OSError:  # it belongs to another user
            pass
        now = start_of(self.pid)
        return not (self.start and now) or self.start == now


def start_of(pid: int) -> str:
    """The boot of the machine and the clock tick in it when the process began, from Linux's /proc; `ended` of a zombie."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except (OSError, ValueError):
        return ""
    return "ended" if state == "Z" else f"{boot} {fields[18]}"


def end_with_parent() -> None:
    """Ends this process within a second of its parent's end, which may be a kill. For the workers of a pool, which would wait for
    work for ever."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
