"""What a shell may hand over: closed streams, an encoding without the characters that tables have, names that are not UTF-8."""

import io
import os
import sys
from collections.abc import Iterable

from stitch.errors import UsageError


def ready_streams() -> None:
    """Closed standard streams become the null device; characters that the encoding of standard output lacks become "?"."""
    for number, (name, mode) in enumerate({"stdin": "r", "stdout": "w", "stderr": "w"}.items()):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the free number, or the next file that is opened would
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (as long as the process)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def require_utf8(words: Iterable[str]) -> None:
    """Raises UsageError for a word of the command line that is not UTF-8, or that Python has decoded as something else."""
    for word in words:
        if os.fsencode(word).decode("utf-8", "replace") != word:
            raise UsageError(
                f"file names and options must be UTF-8; got {word!a}: rename the file, or set PYTHONUTF8=1."
            )
