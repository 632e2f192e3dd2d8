"""Compilation by numba, kept on disk where there is a place for it."""

from collections.abc import Callable
from typing import Any

import numba


def jit(**options: Any) -> Callable[[Callable], Any]:
    """`numba.njit(**options)`, compiled once per machine: kept beside the file, or else in the user's folder for caches.

    Where neither can be written, as in some containers, numba refuses to keep anything, and every process compiles anew.
    What is kept lasts until the function's own file changes, so that functions which call each other belong in one file.
    """

    def compiled(function: Callable) -> Any:
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:
            return numba.njit(**options)(function)

    return compiled
