"""Graphs of candidate pairs for the matching."""

import numpy as np

from matching.types import Alternatives, Candidates


def graph_of(correlation: np.ndarray) -> Candidates:
    """Complete graph of a correlation matrix (NaN: no edge), every column an alternative."""
    rows, cols = np.nonzero(np.isfinite(correlation))
    every = np.broadcast_to(np.arange(correlation.shape[1]), correlation.shape).copy()
    values = correlation[rows, cols]
    alternatives = Alternatives(every, np.where(np.isfinite(correlation), correlation, -np.inf))
    return Candidates(correlation.shape, rows, cols, values, values, alternatives)
