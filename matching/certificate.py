"""A bound on how far a matching on the candidate graph is from the best matching over all pairs, and the missing pairs.

The bound follows from linear programming duality: for any prices v ≥ 0 of B's features, no one-to-one matching gains more than
Σ_j v_j + Σ_i max(0, max_j (gain_ij − v_j)), where gain_ij = correlation − threshold and j runs over *all* features. With the
prices of an optimum on the graph, the bound is tight on the graph. Its excess over the matching's own gain is therefore due to
pairs that the graph lacks, and shows which pairs these are.
"""

from collections.abc import Callable
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

ROUNDING = 1e-12  # gains that differ by less count as equal
NONE = -1


@dataclass(frozen=True)
class Certificate:
    """`gain`, the matching's Σ (correlation − threshold), and `bound`, which no matching over all pairs exceeds."""

    gain: float
    bound: float

    @property
    def gap(self) -> float:
        """(bound − gain) / bound; 0 proves that the matching is optimal."""
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
    """The certificate of `pairs` over all pairs, and the graph extended by up to `more` missing pairs per A-feature.

    A pair is missing when, at the prices, an A-feature would gain more from it than from any pair on the graph. Correlations are
    computed again only for A-features where a pair outside the graph can be that good: it is at most as good as the weakest of
    the `Candidates.complete` best partners.

    Raises: MatchError for a negative threshold.
    """
    if threshold < 0:
        raise MatchError(
            f"threshold must be at least 0 for a certificate, which covers positive correlations only; got {threshold}."
        )
    best_known = np.zeros(candidates.shape[0])
    np.maximum.at(best_known, candidates.rows, candidates.correlation - threshold - prices[candidates.cols])
    cols = np.full((candidates.shape[0], more), NONE)
    missed, correlation = np.zeros(cols.shape), np.zeros(cols.shape)
    # Prices are not needed here: they only lower the gain from other pairs.
    uncertain = _highest_missing_correlation(candidates) - threshold > best_known + ROUNDING
    examined = np.flatnonzero(uncertain)
    best = best_known.copy()

    def part(start: int, stop: int) -> None:
        found = cols, missed, correlation, best
        best_gains(*correlations.arrays(), threshold + prices, examined[start:stop], best_known + ROUNDING, *found)

    in_parts(part, correlations.cost[examined], correlations.threads)
    certificate = Certificate(float((pairs.scores - threshold).sum()), float(prices.sum() + best.sum()))
    found = cols != NONE
    if not found.any():
        return certificate, candidates
    return certificate, with_edges(candidates, correlations, np.nonzero(found)[0], cols[found], correlation[found])


def assign_certified(
    correlations: Correlations,
    candidates: Candidates,
    *,
    threshold: float = 0.0,
    gap: float = 1e-4,
    rounds: int = 16,
    tick: Callable[[], None] = lambda: None,
) -> tuple[Pairs, Certificate]:
    """A one-to-one matching whose gain is within a share `gap` of the optimum over *all* pairs, and its certificate.

    Matches on the graph, adds the pairs that the certificate finds missing, and matches again, until the gap is small enough,
    no pair is missing, or `rounds` matchings have been made. `tick` is called after each matching.

    Raises: MatchError as `assign` and `certify` do.
    Source: column generation, Dantzig & Wolfe 1960, Operations Research 8.
    """
    pairs, prices = assign_with_prices(candidates, threshold)
    certificate, larger = certify(correlations, candidates, pairs, prices, threshold=threshold)
    tick()
    if certificate.gap <= gap or larger is candidates or rounds == 1:
        return pairs, certificate
    return assign_certified(correlations, larger, threshold=threshold, gap=gap, rounds=rounds - 1, tick=tick)


def _highest_missing_correlation(candidates: Candidates) -> Float64[np.ndarray, " rows"]:
    """For every row, an upper bound on the correlation of pairs outside the graph."""
    rows, complete = candidates.shape[0], candidates.complete
    if not complete:
        return np.full(rows, np.inf)
    order = np.lexsort((-candidates.correlation, candidates.rows))
    starts = np.searchsorted(candidates.rows, np.arange(rows + 1))
    found = np.zeros(rows)  # a row with fewer edges has all its positive partners on the graph
    full = np.diff(starts) >= complete
    found[full] = candidates.correlation[order][starts[:-1][full] + complete - 1]
    return found
