"""The work of steps that several commands take. Each function names the code that it counts."""

from stitch.estimates.machine import Machine
from stitch.estimates.work import Work

LAMBDAS, APART = 8, 5  # values of λ that a ridge tries, about, and those more for codes with a λ of their own
BACKWARD = 2  # forward passes that a backward pass costs
CONVERTED = 24  # bytes moved per number that is converted to float32 and float64 and squared
ADDED = 40  # bytes moved per number that is added to a row of a table in float64


def ridge(machine: Machine, columns: int, target: int, *, apart: bool = False) -> Work:
    """`stitch.regression.ridge.ridge`: a Cholesky factor, a solution and its held-out error for each λ."""
    each = columns**3 / 3 + 3 * columns**2 * target
    return machine.product((LAMBDAS + (APART if apart else 0)) * each, double=True)


def moments(machine: Machine, tokens: float, columns: int, target: int, *, double: bool) -> Work:
    """`stitch.regression.moments.accumulate` with all products of `columns` dense columns and a target."""
    products = machine.product(tokens * columns * (columns + 2 * target), double=double)
    return products + machine.moved(CONVERTED * tokens * (columns + target))


def added_to_tables(machine: Machine, tokens: float, tables: int, width: int) -> Work:
    """Rows of so many tables to which each token adds its stream, in float64."""
    return machine.moved(ADDED * tokens * tables * width)


def scored(machine: Machine, model: str, tokens: float, flops: float) -> Work:
    """`stitch.evaluation.scores.evaluate` of one row: forward passes of `flops` per token, and the comparison of logits."""
    return machine.forward(model, tokens * flops) + machine.scoring(tokens)


def trained(machine: Machine, model: str, tokens: float, flops: float, *, frozen: bool = False) -> Work:
    """Forward and backward passes through `flops` per token, and a loss on the logits. `frozen`: without gradients of weights."""
    return (1 + (1 if frozen else BACKWARD)) * scored(machine, model, tokens, flops)
