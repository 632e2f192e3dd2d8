"""Fits several tables jointly by backfitting: each table in turn is the shrunken mean residual of all others.

The objective Σ_t w_t ‖y_t − Σ_k E_k[c_k(t)]‖² is quadratic in all rows. One pass over the stream y therefore collects all that is
needed: the sums of w y by row (`totals`), and the weights with which rows of two tables occur together (`meetings`). A row whose
context occurs n times is its weighted mean residual times n / (n + κ). At every visit, κ and the smallest n that has a row are
chosen to minimise the held-out error, in closed form. For fixed κ this is Gauss–Seidel on ridge regression and converges to the
joint solution. Sources: backfitting, Buja, Hastie & Tibshirani 1989 (Annals of Statistics 17); shrinkage, James & Stein 1961.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stitch.progress import Progress, Steps

SHRINKAGES = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, torch.inf)
LEAST_COUNTS = (1, 2, 3, 5, 9)
PASSES = 10  # at most
GAIN = 1e-3  # relative decrease of the held-out error below which passes end
TOKENS_PER_COUNT = 2**18  # tokens whose meetings are counted at a time
TOGETHER = 2**11  # held-out tokens whose rows are looked up at a time, and rows that are multiplied


@dataclass(frozen=True)
class TableSamples:
    """Tokens with their row in each table (−1: none), their weight, and the stream to be looked up."""

    places: Int64[Tensor, "tables tokens"]
    weights: Float[Tensor, " tokens"]
    y: Float[Tensor, "tokens d"]


@dataclass(frozen=True)
class TableStatistics:
    """Statistics of the fit tokens, for the rows of all tables concatenated. Table k has the rows starts[k] … starts[k+1] − 1.

    `counts` are numbers of tokens, `mass` their summed weights, `totals` their weighted sums of y.
    """

    starts: list[int]
    counts: Float[Tensor, " rows"]
    mass: Float[Tensor, " rows"]
    totals: Float[Tensor, "rows d"]
    meetings: sp.csr_array  # [rows, rows], weighted, without its diagonal

    def of(self, table: int) -> slice:
        """The rows of one table."""
        return slice(self.starts[table], self.starts[table + 1])

    def chosen(self, tables: Sequence[int]) -> "TableStatistics":
        """The statistics of some of the tables; these themselves where it is all of them."""
        if list(tables) == list(range(len(self.starts) - 1)):
            return self
        rows = torch.cat([torch.arange(self.starts[table], self.starts[table + 1]) for table in tables])
        sizes = [self.starts[table + 1] - self.starts[table] for table in tables]
        place = rows.numpy()
        meetings = sp.csr_array(self.meetings[place][:, place])
        return TableStatistics(_starts(sizes), self.counts[rows], self.mass[rows], self.totals[rows], meetings)

    def less(self, prior: Float[Tensor, "rows d"], bias: Float[Tensor, " d"]) -> "TableStatistics":
        """The statistics of the stream minus `bias` and minus the rows `prior`."""
        explained = torch.from_numpy(self.meetings @ prior.numpy())
        explained += (prior + bias).mul_(self.mass[:, None])
        left = torch.sub(self.totals, explained, out=explained)
        return TableStatistics(self.starts, self.counts, self.mass, left, self.meetings)


@dataclass(frozen=True)
class Fit:
    """Rows of every table and what was chosen for it. `errors`: weighted held-out squared errors before and after each pass."""

    rows: list[Float[Tensor, "_ d"]]
    shrinkages: list[float]
    least_counts: list[int]
    errors: list[float]


def relative_weights(y: Float[Tensor, "tokens d"]) -> Float[Tensor, " tokens"]:
    """1 / ‖y‖²: the next block's norm makes relative errors matter, and sinks do not dominate the fit."""
    return 1 / y.double().square().sum(1).clamp_min(1e-30)


def with_rows(places: Int64[Tensor, " tokens"]) -> Iterator[tuple[Int64[Tensor, " _"], Int64[Tensor, " _"]]]:
    """Tokens that have a row in a table, and these rows, some at a time."""
    for tokens in (places >= 0).nonzero()[:, 0].split(TOGETHER):
        yield tokens, places[tokens]


def collect(sizes: Sequence[int], parts: Iterable[TableSamples]) -> TableStatistics:
    """Collects statistics in one pass over the fit tokens. `sizes` are the numbers of rows of the tables."""
    starts = _starts(sizes)
    counts, mass = (torch.zeros(starts[-1], dtype=torch.float64) for _ in range(2))
    totals, meetings = None, sp.csr_array((starts[-1], starts[-1]))
    waiting: list[tuple[Tensor, Tensor]] = []  # places and weights: their streams are not held
    for part in parts:
        weighed = part.weights[:, None] * part.y.double()
        totals = torch.zeros(starts[-1], part.y.shape[1], dtype=torch.float64) if totals is None else totals
        for table, place in enumerate(part.places):
            has = place >= 0
            rows = place[has] + starts[table]
            counts.index_add_(0, rows, torch.ones(len(rows), dtype=torch.float64))
            mass.index_add_(0, rows, part.weights[has])
            totals.index_add_(0, rows, weighed[has])
        waiting.append((part.places, part.weights))
        if sum(len(weights) for _, weights in waiting) >= TOKENS_PER_COUNT:
            meetings, waiting = meetings + _meetings(waiting, starts), []
    if waiting:
        meetings = meetings + _meetings(waiting, starts)
    assert totals is not None, "no tokens"
    return TableStatistics(starts, counts, mass, totals, meetings)


def _starts(sizes: Sequence[int]) -> list[int]:
    return [0, *itertools.accumulate(sizes)]


def _meetings(waiting: list[tuple[Tensor, Tensor]], starts: list[int]) -> sp.csr_array:
    places = torch.cat([places for places, _ in waiting], 1).numpy()
    weights = torch.cat([weights for _, weights in waiting]).numpy()
    table, token = np.nonzero(places >= 0)
    columns = places[table, token] + np.asarray(starts)[table]
    shape = (places.shape[1], starts[-1])
    ones = sp.csr_array((np.ones(len(columns)), (token, columns)), shape)
    weighed = sp.csr_array((weights[token], (token, columns)), shape)
    found = sp.coo_array(ones.T @ weighed)
    apart = found.coords[0] != found.coords[1]
    return sp.csr_array((found.data[apart], (found.coords[0][apart], found.coords[1][apart])), found.shape)


def backfit(
    seen: TableStatistics, held: TableSamples, *, passes: int = PASSES, progress: Progress | None = None
) -> Fit:
    """Fits the tables in order, repeatedly, as long as a pass lowers the error on `held` by at least the share GAIN."""
    tables = range(len(seen.starts) - 1)
    meetings = [_rows_of(seen.meetings, seen.of(table)) for table in tables]
    rows = torch.zeros_like(seen.totals)
    left = held.y.to(torch.float64, copy=True)
    chosen: dict[int, tuple[float, int]] = {}
    errors = [_error(held, left)]
    best, best_chosen = rows.clone(), dict(chosen)
    step = Steps("backfitting (tables, at most)", passes * len(tables), progress)
    for _ in range(passes):
        for table in tables:
            own = seen.of(table)
            others = torch.from_numpy(meetings[table] @ rows.numpy())
            residual = torch.sub(seen.totals[own], others, out=others)
            mass_held, totals_held = torch.zeros_like(seen.mass[own]), torch.zeros_like(residual)
            for tokens, place in with_rows(held.places[table]):
                left[tokens] += rows[own][place]
                mass_held.index_add_(0, place, held.weights[tokens])
                totals_held.index_add_(0, place, held.weights[tokens, None] * left[tokens])
            rows[own], chosen[table] = _shrunken(seen.counts[own], seen.mass[own], residual, mass_held, totals_held)
            for tokens, place in with_rows(held.places[table]):
                left[tokens] -= rows[own][place]
            del others, residual, totals_held  # before there are those of the next table
            step()
        errors.append(_error(held, left))
        if errors[-1] > errors[-2] * (1 - GAIN):
            if errors[-1] > errors[-2]:
                rows, chosen = best, best_chosen
                errors.pop()
            break
        best_chosen = dict(chosen)
        best.copy_(rows)
    step.end()
    return Fit(
        [rows[seen.of(table)] for table in tables],
        [chosen[table][0] if table in chosen else torch.inf for table in tables],
        [chosen[table][1] if table in chosen else 1 for table in tables],
        errors,
    )


def _rows_of(matrix: sp.csr_array, rows: slice) -> sp.csr_array:
    """Neighbouring rows of a square matrix. Its entries are not copied."""
    ends = matrix.indptr[rows.start : rows.stop + 1]
    entries = slice(ends[0], ends[-1])
    shape = (rows.stop - rows.start, len(matrix.indptr) - 1)
    return sp.csr_array((matrix.data[entries], matrix.indices[entries], ends - ends[0]), shape)


def _error(held: TableSamples, left: Tensor) -> float:
    return float(held.weights @ _dots(left, left))


def _dots(one: Float[Tensor, "rows d"], other: Float[Tensor, "rows d"]) -> Float[Tensor, " rows"]:
    """The dot product of each row with that of the other array, some rows at a time."""
    parts = zip(one.split(TOGETHER), other.split(TOGETHER), strict=True)
    return torch.cat([(first * second).sum(1) for first, second in parts])


def _shrunken(
    counts: Tensor, mass: Tensor, residual: Tensor, mass_held: Tensor, totals_held: Tensor
) -> tuple[Tensor, tuple[float, int]]:
    """Rows of one table, written over `residual`, and the κ and least count that minimise the held-out error."""
    means = residual.div_(mass.clamp_min(1e-300)[:, None])
    means[counts == 0] = 0.0
    squares, agreement = mass_held * _dots(means, means), _dots(means, totals_held)

    def error(choice: tuple[float, int]) -> float:
        """Held-out squared error minus that without the table."""
        share = _share(counts, *choice)
        return float((share.square() * squares - 2 * share * agreement).sum())

    best = min(((kappa, least) for kappa in SHRINKAGES for least in LEAST_COUNTS), key=error)
    return means.mul_(_share(counts, *best)[:, None]), best


def _share(counts: Tensor, shrinkage: float, least: int) -> Tensor:
    return torch.where((counts >= least) & (counts > 0), counts / (counts + shrinkage).clamp_min(1e-300), 0.0)
