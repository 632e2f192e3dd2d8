"""Matching two feature sets on the same tokens: statistics, candidates, pairs or plans, nulls, and measures of similarity.

The package knows tensors only, neither dictionaries nor where codes come from. Rows are A's features, columns are B's.
Names are imported on first use, so that importing `matching.errors` does not import torch.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "match": "arrays",
    "Match": "arrays",
    "MatchError": "errors",
    "Alternatives": "types",
    "Candidates": "types",
    "Pairs": "types",
    "Plan": "types",
    "FeatureMoments": "statistics",
    "feature_moments": "statistics",
    "correlation_matrix": "statistics",
    "Correlations": "correlations",
    "candidates": "graph",
    "assign": "assignment",
    "assign_dense": "assignment",
    "Certificate": "certificate",
    "assign_certified": "certificate",
    "certify": "certificate",
    "balanced": "transport",
    "unbalanced": "transport",
    "Rotation": "procrustes",
    "orthogonal_map": "procrustes",
    "linear_cka": "measures",
    "svcca": "measures",
    "mean_max_cosine": "measures",
    "pair_cosines": "measures",
}

__all__ = list(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"matching.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'matching' has no attribute '{name}'")
