"""How far a matching found on the candidate graph can be from the best one over all pairs: prices, a bound, missing pairs.

Linear programming duality: for any prices v ≥ 0 of B's features, no one-to-one matching gains more than
Σ_j v_j + Σ_i max(0, max_j (gain_ij − v_j)), where gain_ij = correlation − threshold and j runs over *all* features. The prices
of an optimum on the graph make this bound tight on the graph, so what it exceeds the matching's own gain by is due to pairs that
the graph leaves out, and says which.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from matching.assignment import assign_with_prices
from matching.correlations import Correlations
from matching.graph import with_edges
from matching.types import Candidates, Pairs

ROUNDING = 1e-12  # gains that differ by less are the same

_Edges = tuple[Int64[np.ndarray, " edges"], Int64[np.ndarray, " edges"], Float64[np.ndarray, " edges"]]
"""rows, cols, correlations."""


@dataclass(frozen=True)
class Certificate:
    """The matching's gain Σ (correlation − threshold), and a bound that no matching over all pairs exceeds."""

    gain: float
    bound: float

    @property
    def gap(self) -> float:
        """Share of the bound that the matching may be short of; 0 says that it is the best there is."""
        return max(0.0, 1 - self.gain / self.bound) if self.bound > 0 else 0.0


def certify(
    correlations: Correlations,
    candidates: Candidates,
    pairs: Pairs,
    prices: Float64[np.ndarray, " cols"],
    *,
    threshold: float = 0.0,
    more: int = 4,
) -> tuple[Certificate, Candidates]:
    """The certificate of `pairs` against all pairs, and the graph with up to `more` pairs per A-feature that it lacks.

    A pair is lacking when an A-feature would gain more from it, at the prices, than from anything on the graph.
    """
    best_known = np.zeros(candidates.shape[0])
    np.maximum.at(best_known, candidates.rows, candidates.correlation - threshold - prices[candidates.cols])
    bound, found = float(prices.sum()), []
    for start, block in correlations.blocks():
        part, lacking = _seen_from_rows(block, start, threshold + prices, best_known, more)
        bound += part
        found += lacking
        del block  # the next one must not be allocated beside it
    certificate = Certificate(float((pairs.scores - threshold).sum()), bound)
    if not found:
        return certificate, candidates
    rows, cols, correlation = (np.concatenate(part) for part in zip(*found, strict=True))
    return certificate, with_edges(candidates, correlations, rows, cols, correlation)


def assign_certified(
    correlations: Correlations, candidates: Candidates, *, threshold: float = 0.0, gap: float = 1e-4, rounds: int = 16
) -> tuple[Pairs, Certificate]:
    """The best one-to-one matching over *all* pairs to within a share `gap`, and the proof.

    Matches on the graph, adds the pairs that the certificate says are lacking, and matches again, until the gap is small enough,
    nothing is lacking, or `rounds` are over. Each round looks at all correlations.

    Raises: MatchError as `assign` and the correlations do.
    Source: column generation, Dantzig & Wolfe 1960, Operations Research 8.
    """
    pairs, prices = assign_with_prices(candidates, threshold)
    certificate, larger = certify(correlations, candidates, pairs, prices, threshold=threshold)
    if certificate.gap <= gap or larger is candidates or rounds == 1:
        return pairs, certificate
    return assign_certified(correlations, larger, threshold=threshold, gap=gap, rounds=rounds - 1)


def _seen_from_rows(
    block: Float64[np.ndarray, "block cols"],
    start: int,
    cost: Float64[np.ndarray, " cols"],
    best_known: Float64[np.ndarray, " rows"],
    more: int,
) -> tuple[float, list[_Edges]]:
    """What the rows of a block would gain at best, and up to `more` pairs of each that beat what it knows."""
    total, found = 0.0, []
    for row, values in enumerate(block, start):  # row by row: no second block in memory
        left = values - cost
        total += max(0.0, float(left.max()))
        lacking = np.flatnonzero(left > best_known[row] + ROUNDING)
        chosen = lacking[np.argsort(-left[lacking], kind="stable")[:more]]
        found.append((np.full(len(chosen), row), chosen, values[chosen]))
    return total, [edges for edges in found if len(edges[0])]
