"""What stitch says when it cannot go on: one line with what is needed, what was got, and what to do."""


class StitchError(Exception):
    """The work failed: a file, the network, the numbers. The message is one line; the command line exits with `exit_code`."""

    exit_code = 1


class UsageError(StitchError):
    """The request itself cannot be met: wrong layer, unknown family, two tokenizers."""

    exit_code = 2
