class SAEError(Exception):
    """An SAE cannot be trained, read or used. One line: what is needed, what was got, what to do."""

    exit_code = 1


class DamagedSnapshot(SAEError):
    """A snapshot of a training cannot be read, or its files are not as they were written."""
