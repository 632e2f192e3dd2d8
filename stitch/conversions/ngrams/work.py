"""The work of fitting n-gram tables, counted from what `memory.py` and `backfit.py` do."""

from collections.abc import Sequence
from dataclasses import dataclass

from stitch.conversions.ngrams.reading import frequent_by_order
from stitch.conversions.plan import Counted
from stitch.estimates import counts
from stitch.estimates.machine import Machine
from stitch.estimates.work import Work
from stitch.models.flops import block_flops
from stitch.text.windows import Windows
from stitch.translation.fit import LEAST_SQUARES_TOKENS
from stitch.translation.look_ups import position_columns

BACKFIT = 54  # times that each row of a table is read and written in backfitting


def grams_of(fit: Windows, order: int, rows: int, vocabulary: int) -> int:
    """How many n-grams have one of `rows` rows: those that `choose_tables` takes. Few occur twice in a short text."""
    return sum(map(len, frequent_by_order(fit.ids, order, vocabulary, rows)))


@dataclass(frozen=True, kw_only=True)
class TableText:
    """Tokens of the fit split and of one held-out split, ids that occur, and n-grams that have a row."""

    fit: int
    held_out: int
    ids: int
    rows: int


def tables_fitted(
    machine: Machine, model: str, early: float, width: int, positions: int, order: int, skips: int, text: TableText
) -> Work:
    """`read_fit_data` and `fit_memory`: states of tokens, the stream of all text, moments, a ridge, sums by row, backfitting.

    `early` are the FLOPs per token of the blocks that the tables replace.
    """
    sample = min(text.fit, LEAST_SQUARES_TOKENS) + text.held_out
    columns = (order + skips + 1) * width + positions
    passes = machine.forward(model, (text.fit + text.held_out + text.ids) * early)
    solved = counts.moments(machine, sample, columns, width, double=False) + counts.ridge(machine, columns, width)
    sums = counts.added_to_tables(machine, text.fit, order + skips, width)
    rows = text.rows + (1 + skips) * text.ids
    return passes + solved + sums + counts.added_to_tables(machine, BACKFIT * rows, 1, width)


def stages(counted: Counted, *, sites: Sequence[int], order: int, rows: int, skips: int) -> dict[str, Work]:
    """The work of `stitch convert ngram` by stage. `sites` are the depths that are tried, the last of which is taken."""
    model, tokens = counted.donor.model, counted.tokens
    columns = position_columns(model)
    fit = counted.donor.windows["fit"]
    text = TableText(
        fit=fit.tokens, held_out=tokens["sweep"], ids=len(fit.ids.unique()),
        rows=grams_of(fit, order, rows, model.config.vocab_size),
    )  # fmt: skip
    total, share = Work(), 1.0
    for site in sites:
        blocks = sum(block_flops(model.config, block, counted.donor.context) for block in range(site))
        share = 1 - blocks / counted.cost.flops
        total += tables_fitted(counted.machine, "donor", blocks, model.width, columns, order, skips, text)
        total += counted.scored(2 * tokens["sweep"], share) if len(sites) > 1 else Work()
    fits = order + 2  # of smaller memories, for the report
    last = TableText(fit=0, held_out=0, ids=text.ids, rows=text.rows)
    smaller = fits / 2 * tables_fitted(counted.machine, "donor", 0.0, model.width, columns, order, skips, last)
    evaluated = counted.scored(3 * tokens["report"]) + counted.scored((fits + 6) * tokens["report"], share)
    return {"tables": total, "smaller tables": smaller, "evaluation": evaluated}
