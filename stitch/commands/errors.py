"""Errors as a user meets them: one line on standard error, in the command line's words, and an exit code."""

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer

from matching.errors import MatchError
from sae.errors import SAEError
from sae.messages import printable
from stitch.commands.spelling import spelt
from stitch.errors import Interrupted, StitchError

LONGEST = 2_000  # characters of an error; what a user wrote may be much longer
KNOWN = (StitchError, SAEError, MatchError)


@contextmanager
def reported(params: Sequence[Any], *, debug: bool, words: Sequence[str] = ()) -> Iterator[None]:
    """A failure inside becomes one line on standard error and the exit code it asks for; with `debug` it passes as it is.

    `words` are those of the command line after `stitch`.
    """
    try:
        yield
    except (typer.Exit, typer.Abort, BrokenPipeError):  # the last where output goes to `head`; typer ends quietly
        raise
    except KeyboardInterrupt as stop:
        print(printable(f"\nstitch: stopped{after_stop(stop, params, words)}"), file=sys.stderr)
        raise typer.Exit(getattr(stop, "exit_code", 130)) from None
    except Exception as error:
        if debug:
            raise
        print(f"stitch: {line_of(error, params)}", file=sys.stderr)
        raise typer.Exit(getattr(error, "exit_code", 1)) from None


def line_of(error: Exception, params: Sequence[Any]) -> str:
    """What is printed of an error: one line in the command line's words, in which nothing can move a terminal's cursor."""
    if isinstance(error, KNOWN):
        text = spelt(str(error), params)
    else:
        text = f"unexpected {type(error).__name__}: {error} (--debug shows where)"
    line = printable(" ".join(text.split()))
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}…"


def after_stop(stop: KeyboardInterrupt, params: Sequence[Any], words: Sequence[str]) -> str:
    """What is left of a stopped command, as the rest of a sentence, and the command line that goes on where there is one."""
    names = {param.name for param in params}
    if isinstance(stop, Interrupted) and stop.kept:
        return f"; what is done is kept. To go on: {shlex.join(['stitch', *going_on(words)])}"
    if "resume" in names:
        return " before anything was kept."
    return "; nothing is kept, the same command begins again." if "overwrite" in names else "."


def going_on(words: Sequence[str]) -> list[str]:
    """The words of the command that goes on with the work of the one with these words."""
    return [*(word for word in words if word not in ("--resume", "--restart")), "--resume"]
