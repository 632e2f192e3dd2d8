"""What a command is about to do: the work of its stages, what it writes, what it holds in memory, what it need not make again."""

from dataclasses import dataclass, field

from stitch.estimates.disk import Disk
from stitch.estimates.machine import Machine
from stitch.estimates.work import Work
from stitch.text.documents import Split

PROCESS = 640 * 2**20  # bytes of Python and the libraries
OF_SAES = 96 * 2**20  # bytes of SAELens with what it imports, and of compiled code of the matching


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`stages` in the order in which they run, by name. `tokens` of text by split. `memory` is the most bytes that are held
    beside the interpreter and its libraries, models included.

    `cached` says of kinds of things how many there are, and how many of them earlier runs have left.
    """

    stages: dict[str, Work]
    tokens: dict[Split, int]
    disk: Disk
    memory: int
    machine: Machine
    cached: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def whole(self) -> Work:
        return sum(self.stages.values(), Work())

    def to_dict(self) -> dict:
        """As JSON has it: times in seconds, sizes in bytes."""
        return {
            "seconds": self.whole.seconds,
            "flops": self.whole.flops,
            "stages": [
                {"name": name, "seconds": work.seconds, "flops": work.flops} for name, work in self.stages.items()
            ],
            "tokens": self.tokens,
            "bytes": {"scratch": self.disk.scratch, "output": self.disk.output, "memory": PROCESS + self.memory},
            "cached": {kind: {"of": of, "there": there} for kind, (of, there) in self.cached.items()},
            "machine": self.machine.to_dict(),
        }
