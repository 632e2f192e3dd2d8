"""Errors as a user meets them: one line on standard error, in the command line's words, and an exit code."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer

from matching.errors import MatchError
from sae.errors import SAEError
from stitch.commands.spelling import spelt
from stitch.errors import StitchError

KNOWN = (StitchError, SAEError, MatchError)


@contextmanager
def reported(params: Sequence[Any], *, debug: bool, resumable: bool) -> Iterator[None]:
    """A failure inside becomes one line on standard error and the exit code it asks for; with `debug` it passes as it is."""
    try:
        yield
    except (typer.Exit, typer.Abort, BrokenPipeError):  # the last where output goes to `head`; typer ends quietly
        raise
    except KeyboardInterrupt:
        print("\nstopped" + ("; the same command with --resume continues." if resumable else "."), file=sys.stderr)
        raise typer.Exit(130) from None
    except Exception as error:
        if debug:
            raise
        if isinstance(error, KNOWN):
            text = spelt(str(error), params)
        else:
            text = f"unexpected {type(error).__name__}: {error} (--debug shows where)"
        print("stitch: " + " ".join(text.split()), file=sys.stderr)
        raise typer.Exit(getattr(error, "exit_code", 1)) from None
