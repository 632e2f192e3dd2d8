"""What a conversion would do: its stages, with those that all conversions share."""

from collections.abc import Callable
from dataclasses import dataclass

from stitch.composite.costs import Cost, whole
from stitch.conversions.donor import Donor
from stitch.estimates import counts
from stitch.estimates.disk import Disk
from stitch.estimates.machine import Machine, calibrate
from stitch.estimates.plan import Plan
from stitch.estimates.work import Work
from stitch.progress import Progress
from stitch.text.documents import Split
from stitch.text.windows import tokens_of

REPORT = 3 * 2**20  # bytes of report, page and tokenizer
WRITING = 2.0  # seconds


@dataclass(frozen=True)
class Counted:
    """A donor, and a machine that has measured its speed under the name "donor"."""

    donor: Donor
    machine: Machine
    cost: Cost

    @property
    def tokens(self) -> dict[Split, int]:
        return tokens_of(self.donor.windows)

    def passes(self, tokens: float) -> Work:
        """Forward passes through the whole donor."""
        return self.machine.forward("donor", tokens * self.cost.flops)

    def scored(self, tokens: float, share: float = 1.0) -> Work:
        """Rows scored on so many tokens in all, through this share of the donor's FLOPs."""
        return counts.scored(self.machine, "donor", tokens, share * self.cost.flops)

    def trained(self, tokens: float) -> Work:
        """Forward and backward passes through the whole donor."""
        return counts.trained(self.machine, "donor", tokens, self.cost.flops)


def plan_conversion(
    donor: Donor,
    stages: Callable[[Counted], dict[str, Work]],
    *,
    memory: int = 0,
    added: int = 0,
    progress: Progress | None = None,
) -> Plan:
    """The plan of a conversion with these stages. Beside the donor and its copy it holds `memory` bytes, and writes `added` more
    than the donor has."""
    machine = calibrate({"donor": donor.model}, donor.context, progress)
    cost = whole(donor.model, donor.context)
    counted = Counted(donor, machine, cost)
    return Plan(
        stages={**stages(counted), "writing": Work(seconds=WRITING)}, tokens=counted.tokens,
        disk=Disk(scratch=0, output=cost.bytes + added + REPORT), memory=2 * cost.bytes + memory, machine=machine,
    )  # fmt: skip
