"""Memory that the allocator keeps after arrays are freed, given back to the system."""

import ctypes
import sys


def give_back() -> None:
    """Returns free memory to the system; takes milliseconds. Arrays of up to 32 MB would otherwise stay with glibc for good, as
    smaller things that are still in use lie between them. With other allocators nothing is done."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)
