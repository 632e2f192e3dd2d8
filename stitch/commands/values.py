"""Values that are more than a number or a word: bytes, a block or auto, numbers, BLOCK=SAE. Each raises UsageError."""

from pathlib import Path

from stitch.errors import UsageError

UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def byte_count(text: str) -> int:
    """The number of bytes that 4G or 512M means."""
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    try:
        return int(float(number) * (UNITS[unit] if unit else 1))
    except (ValueError, KeyError, OverflowError):
        raise UsageError(f"memory must be a size such as 512M or 4G; got {text!r}.") from None


def block_or_auto(text: str | None) -> int | str | None:
    if text is None or text == "auto":
        return text
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"layer_b must be a block's number or auto; got {text!r}.") from None


def whole_numbers(name: str, text: str) -> list[int]:
    """The numbers that 1,2,4 means."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise UsageError(f"{name} must be whole numbers separated by commas, such as 1,2,4; got {text!r}.")
    return [int(part) for part in parts]


def sae_by_block(sources: list[str] | None) -> dict[int, str]:
    """From BLOCK=SAE, given any number of times."""
    found = {}
    for one in sources or []:
        block, _, source = one.partition("=")
        if not block.isdecimal() or not source or int(block) in found:
            raise UsageError(f"features must be BLOCK=SAE, once per block; got {one}.")
        found[int(block)] = source
    return found


def donor_and_behaviour(text: str) -> tuple[str, str]:
    """From DONOR=BEHAVIOUR."""
    donor, _, behaviour = text.partition("=")
    if not behaviour:
        raise UsageError(f"`requests` must be DONOR=BEHAVIOUR; got {text}.")
    return donor, behaviour


def folder_name(*names: str) -> Path:
    """A folder in the current one, called after models or files."""
    return Path("-".join("-".join(Path(name).stem.replace(":", "-").split()) for name in names))
