"""How many rows of a product are held at a time, so that its memory does not depend on how many there are."""

LOGITS = 2**24


def rows_at_once(columns: int, most: int | None = None) -> int:
    """Rows with so many columns that have at most `most` numbers together, or LOGITS; at least one."""
    return max(1, (LOGITS if most is None else most) // columns)
