"""Values that are more than a number or a word: a block or auto, numbers. Each raises UsageError."""

from typing import Literal

from stitch.errors import UsageError


def block_or_auto(name: str, text: str) -> int | Literal["auto"]:
    """A number of blocks, or auto."""
    if text == "auto":
        return "auto"
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{name} must be a block's number or auto; got {text!r}.") from None


def whole_numbers(name: str, text: str) -> list[int]:
    """The numbers that 1,2,4 means."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise UsageError(f"{name} must be whole numbers separated by commas, such as 1,2,4; got {text!r}.")
    return [int(part) for part in parts]
