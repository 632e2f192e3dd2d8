"""The work of fitting n-gram tables, counted from what `memory.py` and `backfit.py` do."""

from collections.abc import Sequence
from dataclasses import dataclass

from stitch.conversions.plan import Counted
from stitch.estimates import counts
from stitch.estimates.machine import Machine
from stitch.estimates.work import Work
from stitch.models.flops import block_flops
from stitch.translation.evidence import LEAST_SQUARES_TOKENS
from stitch.translation.look_ups import position_columns

PASSES, ALONE = 6, 10  # of backfitting, about: with a start from ridge regression, and without
# Bytes moved in a pass per number of a row: for each pair of rows that meet, and for each held-out token, where the array of them
# is kept between uses and where it is so large that it goes back to the system.
MEETING, KEPT, RETURNED, LARGE = 6, 40, 110, 2**25


@dataclass(frozen=True, kw_only=True)
class TableText:
    """Tokens of the fit split and of one held-out split, and ids that occur."""

    fit: int
    held_out: int
    ids: int


def tables_fitted(
    machine: Machine, model: str, early: float, width: int, positions: int, order: int, skips: int, text: TableText
) -> Work:
    """`read_fit_data` and `fit_memory`: states of tokens, the stream of all text, moments, a ridge, sums by row, backfitting.

    `early` are the FLOPs per token of the blocks that the tables replace.
    """
    sample = min(text.fit, LEAST_SQUARES_TOKENS) + text.held_out
    columns = (order + skips + 1) * width + positions
    passes = machine.forward(model, (text.fit + text.held_out + text.ids) * early)
    moments = counts.moments(machine, sample, columns, width, double=False)
    sums = counts.added_to_tables(machine, text.fit, order + skips, width)
    return passes + moments + sums + memory_fitted(machine, order + skips, columns, width, text, PASSES)


def memory_fitted(machine: Machine, tables: int, columns: int, width: int, text: TableText, passes: int) -> Work:
    """`fit_memory` alone: a ridge on `columns`, and in each pass of `backfit` the rows that meet and the held-out tokens."""
    held_out = RETURNED if 8 * text.held_out * width > LARGE else KEPT
    each = MEETING * meetings(text.fit, tables) + held_out * tables * text.held_out
    return counts.ridge(machine, columns, width) + machine.moved(passes * width * each)


def meetings(tokens: float, tables: int) -> float:
    """About how many pairs of rows meet in a text. Longer texts bring fewer new pairs: 0.44 of those that are possible at 8,192
    tokens, 0.38 at 100,000 and 0.19 at a million of the documentation, with seven tables."""
    return 0.45 * (8192 / tokens) ** (1 / 6) * tables * (tables - 1) * tokens


def stages(counted: Counted, *, sites: Sequence[int], order: int, skips: int) -> dict[str, Work]:
    """The work of `stitch convert ngram` by stage. `sites` are the depths that are tried, the last of which is taken."""
    model, tokens = counted.donor.model, counted.tokens
    columns = position_columns(model)
    text = TableText(fit=tokens["fit"], held_out=tokens["sweep"], ids=len(counted.donor.windows["fit"].ids.unique()))
    total, share = Work(), 1.0
    for site in sites:
        blocks = sum(block_flops(model.config, block, counted.donor.context) for block in range(site))
        share = 1 - blocks / counted.cost.flops
        total += tables_fitted(counted.machine, "donor", blocks, model.width, columns, order, skips, text)
        total += counted.scored(2 * tokens["sweep"], share) if len(sites) > 1 else Work()
    fits = order + 2  # memories in the report, with those of lower orders and that without a ridge
    smaller = memory_fitted(counted.machine, order + skips, 0, model.width, text, ALONE)
    for lower in range(1, order + (skips >= order)):
        width = model.width
        smaller += memory_fitted(counted.machine, 2 * lower - 1, 2 * lower * width, width, text, PASSES)
    evaluated = counted.scored(3 * tokens["report"]) + counted.scored((fits + 7) * tokens["report"], share)
    return {"tables": total, "smaller tables": smaller, "evaluation": evaluated}
