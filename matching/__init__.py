"""Matching two feature sets on the same tokens: statistics, candidates, pairs or plans, and their nulls.

Knows tensors only: not what a dictionary is, nor where codes come from. Rows are A's features, columns are B's.
Names are looked up on first use, so that `matching.errors` costs no import of torch.
"""

from importlib import import_module
from typing import Any

_HOMES = {
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
}

__all__ = list(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"matching.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'matching' has no attribute '{name}'")
