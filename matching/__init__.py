"""Matching two feature sets on the same tokens: statistics, candidates, pairs or plans, nulls, and measures of similarity.

The package knows tensors only, neither dictionaries nor where codes come from. Rows are A's features, columns are B's.
Names are imported on first use, so that importing `matching.errors` does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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

__all__ = [
    "Alternatives",
    "Candidates",
    "Certificate",
    "Correlations",
    "FeatureMoments",
    "Match",
    "MatchError",
    "Pairs",
    "Plan",
    "Rotation",
    "assign",
    "assign_certified",
    "assign_dense",
    "balanced",
    "candidates",
    "certify",
    "correlation_matrix",
    "feature_moments",
    "linear_cka",
    "match",
    "mean_max_cosine",
    "orthogonal_map",
    "pair_cosines",
    "svcca",
    "unbalanced",
]

if TYPE_CHECKING:
    from matching.arrays import Match, match
    from matching.assignment import assign, assign_dense
    from matching.certificate import Certificate, assign_certified, certify
    from matching.correlations import Correlations
    from matching.errors import MatchError
    from matching.graph import candidates
    from matching.measures import linear_cka, mean_max_cosine, pair_cosines, svcca
    from matching.procrustes import Rotation, orthogonal_map
    from matching.statistics import FeatureMoments, correlation_matrix, feature_moments
    from matching.transport import balanced, unbalanced
    from matching.types import Alternatives, Candidates, Pairs, Plan


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"matching.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'matching' has no attribute '{name}'")
