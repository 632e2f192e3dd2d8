"""How far a matching found on the candidate graph can be from the best one over all pairs: prices, a bound, missing pairs.

Linear programming duality: for any prices v ≥ 0 of B's features, no one-to-one matching gains more than
Σ_j v_j + Σ_i max(0, max_j (gain_ij − v_j)), where gain_ij = correlation − threshold and j runs over *all* features. The prices
of an optimum on the graph make this bound tight on the graph, so what it exceeds the matching's own gain by is due to pairs that
the graph leaves out, and says which.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from matching.assignment import assign_with_prices
from matching.compiled import best_gains
from matching.correlations import Correlations
from matching.errors import MatchError
from matching.graph import with_edges
from matching.threads import in_parts
from matching.types import Candidates, Pairs

ROUNDING = 1e-12  # gains that differ by less are the same
NONE = -1


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

    A pair is lacking when an A-feature would gain more from it, at the prices, than from anything on the graph. Correlations are
    looked at again only for A-features whose weakest complete partner (`Candidates.complete`) leaves room for that.
    """
    if threshold < 0:
        raise MatchError(
            f"a certificate needs a threshold of at least 0; got {threshold}. Pairs below are not looked at."
        )
    best_known = np.zeros(candidates.shape[0])
    np.maximum.at(best_known, candidates.rows, candidates.correlation - threshold - prices[candidates.cols])
    cols = np.full((candidates.shape[0], more), NONE)
    missed, correlation = np.zeros(cols.shape), np.zeros(cols.shape)
    unsure = _most_left_out(candidates) - threshold > best_known + ROUNDING  # prices only lower what is left out
    looked_at = np.flatnonzero(unsure)
    best = best_known.copy()

    def part(start: int, stop: int) -> None:
        found = cols, missed, correlation, best
        best_gains(*correlations.arrays(), threshold + prices, looked_at[start:stop], best_known + ROUNDING, *found)

    in_parts(part, correlations.cost[looked_at], correlations.threads)
    certificate = Certificate(float((pairs.scores - threshold).sum()), float(prices.sum() + best.sum()))
    found = cols != NONE
    if not found.any():
        return certificate, candidates
    return certificate, with_edges(candidates, correlations, np.nonzero(found)[0], cols[found], correlation[found])


def assign_certified(
    correlations: Correlations, candidates: Candidates, *, threshold: float = 0.0, gap: float = 1e-4, rounds: int = 16
) -> tuple[Pairs, Certificate]:
    """The best one-to-one matching over *all* pairs to within a share `gap`, and the proof.

    Matches on the graph, adds the pairs that the certificate says are lacking, and matches again, until the gap is small enough,
    nothing is lacking, or `rounds` are over.

    Raises: MatchError as `assign` and the correlations do.
    Source: column generation, Dantzig & Wolfe 1960, Operations Research 8.
    """
    pairs, prices = assign_with_prices(candidates, threshold)
    certificate, larger = certify(correlations, candidates, pairs, prices, threshold=threshold)
    if certificate.gap <= gap or larger is candidates or rounds == 1:
        return pairs, certificate
    return assign_certified(correlations, larger, threshold=threshold, gap=gap, rounds=rounds - 1)


def _most_left_out(candidates: Candidates) -> Float64[np.ndarray, " rows"]:
    """The correlation that no pair outside the graph exceeds, for every row."""
    rows, complete = candidates.shape[0], candidates.complete
    if not complete:
        return np.full(rows, np.inf)
    order = np.lexsort((-candidates.correlation, candidates.rows))
    starts = np.searchsorted(candidates.rows, np.arange(rows + 1))
    found = np.zeros(rows)  # rows with fewer edges have all their positive partners
    full = np.diff(starts) >= complete
    found[full] = candidates.correlation[order][starts[:-1][full] + complete - 1]
    return found
