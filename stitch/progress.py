"""How library code tells of its progress, to whoever listens."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]  # stage, done, total
