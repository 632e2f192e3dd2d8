"""The vocabulary of the SUBLEQ machine: bytes, counters, and marks for no output and for halting."""

BOS, HALT, NO_OUTPUT = "<s>", "!", "."
DIGITS = "0123456789abcdef"
VALUES = tuple(high + low for high in DIGITS for low in DIGITS)


def tokens_of(cells: int) -> tuple[str, ...]:
    """All tokens of a machine with that many cells of memory."""
    return (BOS, *VALUES, *(f"@{VALUES[address]}" for address in range(cells)), NO_OUTPUT, HALT)
