"""Numbers of bytes in words."""


def size_in_words(count: float | int) -> str:
    """Such as 512 B, 24.5 MiB or 4.7 GiB."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}" if unit == "B" or count >= 100 else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"
