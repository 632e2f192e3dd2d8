"""Errors of one line: what is needed, what was got, and what to do."""


class StitchError(Exception):
    """The work failed because of a file, the network or the numbers. The command line exits with `exit_code`."""

    exit_code = 1


class UsageError(StitchError):
    """The request cannot be met as given: a wrong layer, an unknown family, two different tokenizers."""

    exit_code = 2
