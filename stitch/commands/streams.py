"""The standard streams: what a shell may hand over, such as closed ones or odd names, and a first word on a terminal."""

import io
import os
import sys
from collections.abc import Iterable
from typing import Any

from stitch.errors import OutputError, UsageError

STDOUT = 1  # its number for the system


def ready_streams() -> None:
    """Closed standard streams become the null device; characters that the encoding of standard output lacks become "?"."""
    for number, (name, mode) in enumerate({"stdin": "r", "stdout": "w", "stderr": "w"}.items()):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the free number, or the next file that is opened would
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (as long as the process)
    if isinstance(given := sys.stdout, io.TextIOWrapper):
        given.reconfigure(errors="replace")
        sys.stdout = _told_of_errors(given)


def _told_of_errors(given: io.TextIOWrapper) -> io.TextIOWrapper:
    """The same stream through `StandardOutput`. What is no file, as a console of Windows, is left as it is."""
    raw = getattr(given.buffer, "raw", given.buffer)
    if type(raw) is not io.FileIO or raw.fileno() != STDOUT:
        return given
    own = StandardOutput(STDOUT, "w", closefd=False)
    # With PYTHONUNBUFFERED there is no buffer.
    buffer: Any = own if given.write_through else io.BufferedWriter(own)
    return io.TextIOWrapper(
        buffer, given.encoding, errors="replace", line_buffering=given.line_buffering, write_through=given.write_through
    )


class StandardOutput(io.FileIO):
    """Says of its first error what it is an error of: others are of files, which have names. Later output is dropped."""

    def write(self, data: Any, /) -> int | None:
        try:
            return super().write(data) if len(data) else 0  # click writes nothing to see whether it may write
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            if isinstance(error, BrokenPipeError):  # nobody reads on, which ends the command quietly
                raise
            raise OutputError(f"standard output cannot be written: {error.strerror}") from error


def require_utf8(words: Iterable[str]) -> None:
    """Raises UsageError for a word of the command line that is not UTF-8, or that Python has decoded as something else."""
    for word in words:
        if os.fsencode(word).decode("utf-8", "replace") != word:
            raise UsageError(
                f"file names and options must be UTF-8; got {word!a}: rename the file, or set PYTHONUTF8=1."
            )


def say_starting(quiet: bool) -> None:
    """A word on a terminal while libraries are imported, which takes seconds. What comes next is written over it."""
    if not quiet and sys.stderr is not None and sys.stderr.isatty():
        print("starting...", end="\r", file=sys.stderr, flush=True)
