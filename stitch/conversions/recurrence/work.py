"""The work of `stitch convert recurrent`, counted from what `fit.py`, `allocation.py` and `convert.py` do."""

from collections.abc import Sequence

from stitch.conversions.plan import Counted
from stitch.conversions.recurrence.allocation import IN_256, MEASURED, MOST_STEPS, ROUNDS
from stitch.conversions.recurrence.fit import SWEEP_TOKENS, TOKENS_FOR_MOMENTS, TOKENS_PER_STEP
from stitch.conversions.recurrence.fit_outputs import ROWS
from stitch.conversions.recurrence.recall import LEAST_PROMPTS
from stitch.conversions.recurrence.recall import TOKENS as RECALL_TOKENS
from stitch.estimates import counts
from stitch.estimates.work import Work
from stitch.models.flops import block_flops

RECURRENT = 2  # times the donor's pass that a pass of the recurrent form takes
NETS = 5  # of the report, beside the donor: converted, two baselines, two nulls
COMPARED, TRIED = 250, 16  # bytes moved per attention weight of a loss on outputs, and of a size that is tried
BLOCK = 0.008  # seconds per block and step for the many small operations of a loss on outputs


def stages(
    counted: Counted, *, steps: int, logit_steps: int, fitted: int, allocated: bool, blocks: Sequence[int]
) -> dict[str, Work]:
    """Work by stage. `fitted` forms are trained, `allocated` says whether keys are given out by measured costs, `blocks` are
    those that are converted."""
    tokens = counted.tokens
    divergence = (1 + RECURRENT) * counted.scored(min(SWEEP_TOKENS, tokens["sweep"]))
    found = {"moments": counted.passes(min(tokens["fit"], TOKENS_FOR_MOMENTS))}
    by_outputs = _step_on_outputs(counted, blocks)
    if allocated:
        costs = _costs_by_size(counted, min(tokens["fit"], MEASURED), blocks)
        found["keys by head"] = ROUNDS * (min(steps, MOST_STEPS) * by_outputs + divergence) + (ROUNDS - 1) * costs
    by_logits = counted.passes(TOKENS_PER_STEP) + RECURRENT * _trained(counted, TOKENS_PER_STEP)
    found["fits"] = fitted * (steps * by_outputs + logit_steps * by_logits + 3 * divergence)
    asked = max(RECALL_TOKENS, LEAST_PROMPTS * counted.donor.context // 2)
    found["evaluation"] = (1 + NETS * RECURRENT) * counted.scored(tokens["report"])
    found["evaluation"] += (2 + NETS * RECURRENT) * counted.passes(asked)
    return found


def _step_on_outputs(counted: Counted, blocks: Sequence[int]) -> Work:
    """A step of `fit_outputs`: a pass through the blocks, and the loss of each with its gradient."""
    model, context = counted.donor.model, counted.donor.context
    before_head = sum(block_flops(model.config, block, context) for block in range(model.depth)) / counted.cost.flops
    moved = counted.machine.moved(COMPARED * _attention_weights(counted, ROWS, blocks))
    return counted.passes(TOKENS_PER_STEP * before_head) + moved + Work(seconds=BLOCK * len(blocks))


def _costs_by_size(counted: Counted, tokens: int, blocks: Sequence[int]) -> Work:
    """`costs_by_size`: gradients of drawn tokens, and every size that is tried."""
    steps = tokens / TOKENS_PER_STEP
    weights = _attention_weights(counted, TOKENS_PER_STEP, blocks)
    moved = counted.machine.moved(TRIED * len(IN_256) * steps * weights)
    return _trained(counted, tokens) + moved


def _attention_weights(counted: Counted, queries: int, blocks: Sequence[int]) -> int:
    """In a step: those of so many queries on all keys, in all heads."""
    return sum(counted.donor.model.heads(block) for block in blocks) * queries * counted.donor.context


def _trained(counted: Counted, tokens: float) -> Work:
    """Forward and backward passes, with gradients of the forms' few own weights alone."""
    return counts.trained(counted.machine, "donor", tokens, counted.cost.flops, frozen=True)
