"""What is allocated while code runs, which tracemalloc does not see of torch."""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from stitch.files.heap import give_back


class Largest(TorchDispatchMode):
    """The most numbers that any tensor had which was made meanwhile."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor) and found.is_floating_point() and found.untyped_storage().nbytes():
            self.numbers = max(self.numbers, found.numel())
        return found


PROCESS = Path("/proc/self")
M_MMAP_THRESHOLD = -3  # of <malloc.h>


def resident_growth(work: Callable[[], object]) -> int:
    """Bytes by which the memory that this process holds grows at most while `work` runs. Linux alone can say."""
    give_back()
    with _own_mappings():
        (PROCESS / "clear_refs").write_text("5")  # the peak so far is forgotten
        before = _held("VmRSS")
        work()
        return _held("VmHWM") - before


@contextmanager
def _own_mappings() -> Iterator[None]:
    """Arrays of 1 MiB or more leave the process when they are freed. Otherwise glibc keeps those of up to 32 MiB between what is
    still in use, and how many depends on the tests that ran before."""
    limit = getattr(ctypes.CDLL(None), "mallopt", lambda option, value: None)
    limit(M_MMAP_THRESHOLD, 2**20)
    try:
        yield
    finally:
        limit(M_MMAP_THRESHOLD, 2**25)  # where glibc itself arrives once large arrays have been freed


def _held(name: str) -> int:
    (line,) = (line for line in (PROCESS / "status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024
