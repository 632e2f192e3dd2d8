"""Measurements in processes of their own. Only the standard library is imported, so that the parent process stays small."""

import json
import resource
import subprocess
import sys
from collections.abc import Sequence


def last_line(command: Sequence[object], **options) -> dict:
    """Runs a command and parses the last line that it prints as JSON."""
    done = subprocess.run([str(word) for word in command], check=True, stdout=subprocess.PIPE, text=True, **options)
    return json.loads(done.stdout.splitlines()[-1])


def in_bytes(maxrss: int) -> int:
    """A peak resident set as the operating system reports it: macOS counts bytes, Linux kibibytes."""
    return maxrss * (1 if sys.platform == "darwin" else 1024)


def peak_bytes() -> int:
    """The peak resident set of this process."""
    return in_bytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
