"""What is allocated while code runs, which tracemalloc does not see of torch."""

from collections.abc import Callable
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


def resident_growth(work: Callable[[], object]) -> int:
    """Bytes by which the memory that this process holds grows at most while `work` runs. Linux alone can say."""
    give_back()
    (PROCESS / "clear_refs").write_text("5")  # the peak so far is forgotten
    before = _held("VmRSS")
    work()
    return _held("VmHWM") - before


def _held(name: str) -> int:
    (line,) = (line for line in (PROCESS / "status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024
