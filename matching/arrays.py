"""`matching.match`: the features of two arrays matched one to one."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from matching.certificate import Certificate, assign_certified
from matching.correlations import Correlations
from matching.errors import MatchError
from matching.graph import candidates
from matching.stream import SEGMENT
from matching.types import Candidates, Pairs


@dataclass(frozen=True)
class Match:
    """What `match` finds: the pairs, a bound on how far from the best matching they are, and the graph they were chosen on."""

    pairs: Pairs
    certificate: Certificate
    graph: Candidates


def match(features_a: Any, features_b: Any, *, seed: int = 0, memory: int = 2**30, threads: int = 1) -> Match:
    """The one-to-one matching of the features of A and B with the highest sum of correlations over the same tokens.

    `features_a` [tokens, features_a] and `features_b` [tokens, features_b] are numpy arrays, torch tensors or scipy.sparse
    matrices; row i of both is the same token. Only positive correlations are matched, and only features that are not zero on
    ten tokens or more. `pairs.scores` are Pearson's r, `pairs.null_scores` the best r among 16 random partners, drawn with
    `seed`. `certificate.gap` is at most how far the sum is below that of any matching, as a share. `memory` in bytes is a limit
    on working space besides the arrays, `threads` the number of threads.

    Raises: MatchError when the arrays differ in tokens or hold NaN or infinity, and when no feature varies.

    >>> import numpy as np, matching
    >>> a = np.random.default_rng(0).random((500, 8)) ** 4
    >>> found = matching.match(a, a[:, ::-1])
    >>> [int(column) for column in found.pairs.cols], float(found.pairs.scores.min().round(6)), found.certificate.gap
    ([7, 6, 5, 4, 3, 2, 1, 0], 1.0, 0.0)
    """
    a, b = _rows(features_a, "features_a"), _rows(features_b, "features_b")
    if a.shape[0] != b.shape[0]:
        raise MatchError(f"both arrays must have a row per token; got {a.shape[0]} and {b.shape[0]} rows.")

    def batches():
        for start in range(0, a.shape[0], SEGMENT):
            yield _sparse(a[start : start + SEGMENT]), _sparse(b[start : start + SEGMENT])

    correlations = Correlations.read(batches, budget_bytes=memory, threads=threads)
    graph = candidates(correlations, generator=np.random.default_rng(seed))
    pairs, certificate = assign_certified(correlations, graph)
    return Match(pairs, certificate, graph)


def _rows(features: Any, name: str) -> Any:
    """The array as something that can be cut by rows."""
    found = features.detach().cpu() if hasattr(features, "detach") else features
    if len(found.shape) != 2:
        raise MatchError(f"{name} must be [tokens, features]; got the shape {tuple(found.shape)}.")
    if getattr(found, "layout", None) is not None and "sparse" in str(found.layout):  # of torch
        entries = found.to_sparse_coo().coalesce()
        places = tuple(entries.indices().numpy())
        return sp.csr_array((entries.values().double().numpy(), places), shape=tuple(found.shape))
    return found.tocsr() if sp.issparse(found) else found


def _sparse(rows: Any) -> sp.csr_array:
    # Numpy lacks some of torch's dtypes, and scipy.sparse lacks numpy's half.
    rows = rows.double().numpy() if hasattr(rows, "double") else rows
    return sp.csr_array(rows.astype(np.float32) if rows.dtype == np.float16 else rows)
