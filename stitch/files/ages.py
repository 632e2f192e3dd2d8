"""How long ago, in words."""

import time


def age_in_words(since: float) -> str:
    """Such as 5 min, 3 h or 12 days, since a time in seconds since 1970."""
    minutes = max(0.0, time.time() - since) / 60
    if minutes < 90:
        return f"{minutes:.0f} min"
    return f"{minutes / 60:.0f} h" if minutes < 48 * 60 else f"{minutes / 60 / 24:.0f} days"
