"""The work of `stitch.jobs.across.fit_across`, and of reading B in its own tokens."""

from stitch.composite.costs import Costs, head_flops
from stitch.conversions.retokenization.omp import TERMS
from stitch.estimates import counts
from stitch.estimates.machine import Machine
from stitch.estimates.work import Work
from stitch.jobs.across import CHOICE, FIT
from stitch.jobs.heads import CLOSED
from stitch.models.model import Model

HEADS = CLOSED + len(TERMS)  # that are scored for the choice
READ = 3  # times that B's own head is run on the text that heads are fitted on: for continuations, and for what it says
FITTED = 2  # heads that are fitted, behind B's late blocks and behind all of B


def head_for_other_tokens(machine: Machine, costs: Costs, b: Model, onto: int, whole_a: float) -> Work:
    """Passes of B in its own tokens and in A's, of A, B's own logits, the heads' products, and the choice.

    The machine knows the models as "a" and "b". `whole_a` are FLOPs per token of A, which may be a composite still to be made.
    """
    assert b.original is not None
    own, new = head_flops(b.original.model), head_flops(b)
    whole, late = costs.whole_target.flops - own, costs.late(onto).flops - new
    passes = machine.forward("b", FIT * (3 * whole + late)) + machine.forward("a", FIT * whole_a)
    logits = machine.product(FIT * (READ * own + FITTED * 3 * new))
    solved = machine.product(FITTED * 4 * b.width * new, double=True)
    return passes + logits + solved + counts.scored(machine, "b", HEADS * CHOICE, late + new)
