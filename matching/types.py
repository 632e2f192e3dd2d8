"""Types of a matching: one-to-one pairs or a transport plan, and the candidate graph on which both are computed."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64


@dataclass(frozen=True)
class Alternatives:
    """Random partners drawn for every row, with their correlations (−inf where undefined): the chance level."""

    cols: Int64[np.ndarray, "rows draws"]
    correlation: Float64[np.ndarray, "rows draws"]

    def best(
        self, rows: Int64[np.ndarray, " pairs"], cols: Int64[np.ndarray, " pairs"]
    ) -> Float64[np.ndarray, " pairs"]:
        """Highest correlation among the draws of each pair's row, without its own partner; 0 if no draw remains."""
        correlation = np.where(self.cols[rows] == cols[:, None], -np.inf, self.correlation[rows])
        best = correlation.max(axis=1, initial=-np.inf)
        return np.where(np.isfinite(best), best, 0.0)


@dataclass(frozen=True)
class Candidates:
    """Sparse graph of candidate pairs, in order of (row, col); features without variance have no edge.

    `correlation` is Pearson's r over tokens, `co_moment` is E[z_row z_col], uncentred. The edges of every row include its
    `complete` best partners with positive correlations; `complete` is 0 where that is not known.
    """

    shape: tuple[int, int]
    rows: Int64[np.ndarray, " edges"]
    cols: Int64[np.ndarray, " edges"]
    correlation: Float64[np.ndarray, " edges"]
    co_moment: Float64[np.ndarray, " edges"]
    alternatives: Alternatives
    complete: int = 0


@dataclass(frozen=True)
class Pairs:
    """One-to-one matching in order of rows: feature `rows[i]` of A is feature `cols[i]` of B.

    `scores` is the correlation of each pair, `null_scores` that of the best random alternative (`Alternatives.best`).
    """

    rows: Int64[np.ndarray, " pairs"]
    cols: Int64[np.ndarray, " pairs"]
    scores: Float64[np.ndarray, " pairs"]
    null_scores: Float64[np.ndarray, " pairs"]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Plan:
    """Soft matching: `mass[e]` of feature `rows[e]` of A goes to feature `cols[e]` of B, in order of (row, col)."""

    rows: Int64[np.ndarray, " edges"]
    cols: Int64[np.ndarray, " edges"]
    mass: Float64[np.ndarray, " edges"]

    def __len__(self) -> int:
        return len(self.rows)
