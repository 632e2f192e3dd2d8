"""Measurements in processes of their own. Only the standard library is imported, so that the parent process stays small."""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence


def last_line(command: Sequence[object], **options) -> dict:
    """Runs a command and parses the last line that it prints as JSON."""
    done = subprocess.run([str(word) for word in command], check=True, stdout=subprocess.PIPE, text=True, **options)
    return json.loads(done.stdout.splitlines()[-1])


def measured(command: Sequence[object]) -> dict[str, float]:
    """Runs a command, whose output goes to standard error, and returns its time and the largest resident set of its processes.

    Raises: CalledProcessError when it fails; its peak is printed first.
    """
    words, start = [str(word) for word in command], time.perf_counter()
    process = subprocess.Popen(words, stdout=sys.stderr.fileno())
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    found = {
        "wall_seconds": round(time.perf_counter() - start, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_bytes": in_bytes(usage.ru_maxrss),
    }
    if process.returncode:
        print(json.dumps(found), file=sys.stderr)
        raise subprocess.CalledProcessError(process.returncode, words)
    return found


def in_bytes(maxrss: int) -> int:
    """A peak resident set as the operating system reports it: macOS counts bytes, Linux kibibytes."""
    return maxrss * (1 if sys.platform == "darwin" else 1024)


def peak_bytes() -> int:
    """The peak resident set of this process."""
    return in_bytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
