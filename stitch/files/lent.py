"""What a caller holds in memory, known by name inside a block: loaded models, texts, and what is carried over."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")


class Lent(Generic[T]):
    """Values by name. Every thread and task sees those of the blocks that it was started in."""

    def __init__(self, label: str):
        self._known: ContextVar[Mapping[str, T] | None] = ContextVar(label, default=None)

    @contextmanager
    def known(self, values: Mapping[str, T]) -> Iterator[None]:
        """Inside the block, `get` finds these as well."""
        before = self._known.set({**(self._known.get() or {}), **values})
        try:
            yield
        finally:
            self._known.reset(before)

    def get(self, name: str) -> T | None:
        return (self._known.get() or {}).get(name)


FILES: Lent[Path] = Lent("lent files")


def lent_file(file: str | Path) -> Path:
    """Where a file is that may be known by a name of this block alone."""
    return FILES.get(str(file)) or Path(file)
