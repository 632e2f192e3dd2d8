"""The work of `stitch convert recurrent`, counted from what `fit.py`, `allocation.py` and `convert.py` do."""

from stitch.conversions.plan import Counted
from stitch.conversions.recurrence.allocation import MEASURED, MOST_STEPS, ROUNDS
from stitch.conversions.recurrence.fit import SWEEP_TOKENS, TOKENS_FOR_MOMENTS, TOKENS_PER_STEP
from stitch.estimates.work import Work

OUTPUTS = 4  # times a forward pass that a step on attention outputs takes
RECURRENT = 2.5  # times the donor's pass that a pass of the recurrent form takes
ROWS = 6  # of the report: donor, converted, two baselines, two nulls
SIZES = 16  # of an allocation


def stages(counted: Counted, *, steps: int, logit_steps: int, fitted: int, allocated: bool) -> dict[str, Work]:
    """Work by stage. `fitted` forms are trained, `allocated` says whether exact keys are given out by measured costs."""
    tokens = counted.tokens
    sweep = min(SWEEP_TOKENS, tokens["sweep"])
    divergence = (1 + RECURRENT) * counted.scored(sweep)
    found = {"moments": counted.passes(min(tokens["fit"], TOKENS_FOR_MOMENTS))}
    if allocated:
        short = OUTPUTS * counted.passes(min(steps, MOST_STEPS) * TOKENS_PER_STEP) + divergence
        costs = counted.trained(min(tokens["fit"], MEASURED)) * (1 + SIZES / 8)
        found["keys by head"] = ROUNDS * short + (ROUNDS - 1) * costs
    by_outputs = OUTPUTS * counted.passes(steps * TOKENS_PER_STEP)
    by_logits = counted.passes(logit_steps * TOKENS_PER_STEP) + RECURRENT * counted.trained(
        logit_steps * TOKENS_PER_STEP
    )
    found["fits"] = fitted * (by_outputs + by_logits + 3 * divergence)
    found["evaluation"] = (1 + RECURRENT * (ROWS - 1)) * counted.scored(tokens["report"])
    return found
