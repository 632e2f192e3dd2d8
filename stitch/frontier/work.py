"""The work of making the alternatives to a composite, counted from what `stitch.frontier.collect` does."""

from dataclasses import dataclass

from stitch.conversions.ngrams.work import TableText, tables_fitted
from stitch.estimates import counts
from stitch.estimates.machine import Machine
from stitch.estimates.work import Work
from stitch.frontier.own_tables import ORDER, SKIPS
from stitch.translation.evidence import LEAST_SQUARES_TOKENS


@dataclass(frozen=True, kw_only=True)
class Donor:
    """A donor as its alternatives see it: its name in the machine's rates, FLOPs per token before its site and in all, width, and
    columns of learned positions."""

    name: str
    early: float
    whole: float
    width: int
    positions: int


def own_tables(machine: Machine, donor: Donor, text: TableText) -> Work:
    """`stitch.frontier.own_tables.own_tables`."""
    return tables_fitted(machine, donor.name, donor.early, donor.width, donor.positions, ORDER, SKIPS, text)


def cut(machine: Machine, donor: Donor, text: TableText) -> Work:
    """`shortened` or `a_exit`: a pass over the least-squares sample, and an affine map or a down projection."""
    tokens = min(text.fit, LEAST_SQUARES_TOKENS) + text.held_out
    neurons = 4 * donor.width
    passes = machine.forward(donor.name, tokens * donor.whole)
    return (
        passes
        + counts.moments(machine, tokens, neurons, donor.width, double=True)
        + counts.ridge(machine, neurons, donor.width)
    )
