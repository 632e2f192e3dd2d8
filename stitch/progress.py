"""The callback by which library functions report progress."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]  # called with (stage, done, total)
