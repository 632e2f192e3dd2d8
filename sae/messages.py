"""Text of others in messages and on a terminal: on one line, and without characters that a terminal obeys."""


def one_line(error: Exception) -> str:
    """The text of `error` on one line of at most 200 characters; the name of its class where it has no text."""
    return printable(" ".join(str(error).split()))[:200].rstrip(".") or type(error).__name__


def printable(text: str) -> str:
    """`text` with escapes in the place of control characters and of those that change the direction of writing.

    Line feeds stay, as they are in what is printed on several lines.
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one == "\n" else ascii(one)[1:-1] for one in text)
