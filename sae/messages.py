"""Errors of other libraries as part of a one-line message."""


def one_line(error: Exception) -> str:
    """The text of `error` on one line of at most 200 characters; the name of its class where it has no text."""
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
