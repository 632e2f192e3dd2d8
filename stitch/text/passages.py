"""Plain text cut into documents of bounded length."""

import hashlib
import re
from collections.abc import Iterator

SHORTEST, LONGEST = 2000, 8000  # characters of a passage; the last of a text may be shorter
WHITE_SPACE = re.compile(r"\s")


def passages(text: str) -> Iterator[str]:
    """Passages of SHORTEST to LONGEST characters. Joined by what separated them they are `text` again.

    Each ends at the first blank line that makes it long enough. Where it would be longer than LONGEST, it ends at the first line
    end after SHORTEST characters, or else at the first white space, or else after LONGEST characters.
    """
    start = 0
    while start < len(text):
        stop, following = _end(text, start)
        if text[start:stop].strip():
            yield text[start:stop]
        start = following


def _end(text: str, start: int) -> tuple[int, int]:
    """Where the passage from `start` on ends, and where the next begins."""
    least, most = start + SHORTEST, start + LONGEST
    if (place := text.find("\n\n", least, most + 2)) >= 0:
        return place, place + 2
    if len(text) <= most:
        return len(text), len(text)
    if (place := text.find("\n", least, most + 1)) >= 0:
        return place, place + 1
    if space := WHITE_SPACE.search(text, least, most + 1):
        return space.start(), space.end()
    return most, most


def name_of(passage: str) -> str:
    """A name that only the text decides, so that a passage keeps its split when its file is renamed or moved."""
    return f"passage {hashlib.sha256(passage.encode()).hexdigest()[:16]}"
