"""Compilation by numba, cached on disk where possible."""

from collections.abc import Callable
from typing import Any

import numba


def jit(**options: Any) -> Callable[[Callable], Any]:
    """`numba.njit(**options)`, compiled once per machine: cached beside the file, or else in the user's cache folder.

    Where neither can be written, as in some containers, numba raises, and every process compiles the function again. The
    cache is valid until the function's own file changes; therefore functions that call each other must be in one file.
    """

    def compiled(function: Callable) -> Any:
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:
            return numba.njit(**options)(function)

    return compiled
