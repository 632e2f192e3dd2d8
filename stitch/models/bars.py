"""What transformers' progress bars count while it reads weights, told to a progress callback instead of drawn."""

import contextlib
import io
import re
from collections.abc import Callable, Collection, Iterator
from typing import Any

from stitch.progress import Progress, counted

SHOWN = re.compile(r"(\d+)/(\d+) \[")  # how tqdm writes what is done, and of how much


@contextlib.contextmanager
def told(stage: str, progress: Progress | None) -> Iterator[None]:
    """Inside, `progress` gets the stage and how much of it is done, instead of a bar for every loop that transformers counts."""
    from transformers.utils import logging

    class Counted(logging.EmptyTqdm):
        """In the place of a bar."""

        def __iter__(self) -> Iterator:
            items: Any = self._iterator
            return counted(items, stage, progress) if isinstance(items, Collection) else iter(items)

    exchange: Callable[[Any], Any] = getattr(logging, "set_tqdm_hook", lambda hook: None)  # some versions have no hook
    before = exchange(lambda factory, args, kwargs: Counted(*args, **kwargs))
    try:
        yield
    finally:
        exchange(before)


class Drawn(io.StringIO):
    """In the place of standard error, where a bar is drawn that cannot be exchanged. What it shows is told, and not printed."""

    def __init__(self, stage: str, progress: Progress | None) -> None:
        super().__init__()
        self._stage, self._progress = stage, progress

    def write(self, text: str) -> int:
        if self._progress and (found := SHOWN.search(text)):
            self._progress(self._stage, int(found[1]), int(found[2]))
        return len(text)
