"""`matching.match`: the features of two arrays matched one to one."""

from dataclasses import dataclass
from html import escape
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

    def _facts(self) -> dict[str, str]:
        scores, null_scores = (float(x.mean()) if len(x) else 0.0 for x in (self.pairs.scores, self.pairs.null_scores))
        return {
            "pairs": f"{len(self.pairs):,}",
            "mean correlation": f"{scores:.3f}",
            "best of 16 random partners": f"{null_scores:.3f}",
            "below the best matching at most": f"{100 * self.certificate.gap:.2g} %",
        }

    def __repr__(self) -> str:
        return f"Match({', '.join(f'{name}: {value}' for name, value in self._facts().items())})"

    def _repr_html_(self) -> str:
        heads, cells = (
            "".join(f"<{tag}>{escape(one)}</{tag}>" for one in line)
            for tag, line in (("th", self._facts().keys()), ("td", self._facts().values()))
        )
        return f"<table><thead><tr>{heads}</tr></thead><tbody><tr>{cells}</tr></tbody></table>"


def match(features_a: Any, features_b: Any, *, seed: int = 0, memory: int = 2**30, threads: int = 1) -> Match:
    """The one-to-one matching of the features of A and B with the highest sum of correlations over the same tokens.

    `features_a` [tokens, features_a] and `features_b` [tokens, features_b] are numpy arrays, torch tensors, scipy.sparse
    matrices, or what numpy makes an array of, such as a DataFrame; row i of both is the same token. Only positive correlations
    are matched, and only features that are not zero on ten tokens or more. `pairs.scores` are Pearson's r,
    `pairs.null_scores` the best r among 16 random partners, drawn with `seed`. `certificate.gap` is at most how far the sum is
    below that of any matching, as a share. `memory` in bytes is a limit on working space besides the arrays, `threads` the
    number of threads.

    Raises: MatchError for what is no array of numbers, when the arrays differ in tokens or hold NaN or infinity, and when no
    feature varies.

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
    found: Any
    if hasattr(features, "detach"):  # of torch
        found = features.detach().cpu()
    else:
        found = features if sp.issparse(features) else _array(features, name)
    if len(found.shape) != 2:
        raise MatchError(f"{name} must be [tokens, features]; got the shape {tuple(found.shape)}.")
    if "complex" in str(found.dtype):
        raise MatchError(f"{name} must hold real numbers; got {found.dtype}.")
    if "sparse" in str(getattr(found, "layout", "")):  # of torch
        found = found.to_dense() if found.dense_dim() else found  # whose entries are rows
        entries = found.to_sparse_coo().coalesce()
        places = tuple(entries.indices().numpy())
        return sp.csr_array((entries.values().double().numpy(), places), shape=tuple(found.shape))
    return found.tocsr() if sp.issparse(found) else found


def _array(features: Any, name: str) -> np.ndarray:
    try:
        found = np.asarray(features)
        found = found.astype(np.float64) if found.dtype == object else found  # columns of several types
    except (TypeError, ValueError):  # rows of unequal length, and what is no number
        found = None
    if found is None or found.dtype.kind not in "biuf":
        raise MatchError(
            f"{name} must be an array of numbers [tokens, features]: numpy's, torch's, scipy's or a DataFrame; "
            f"got {type(features).__name__}{'' if found is None else f' of {found.dtype}'}."
        )
    return found


def _sparse(rows: Any) -> sp.csr_array:
    # Numpy lacks some of torch's dtypes, and scipy.sparse lacks numpy's half.
    rows = rows.double().numpy() if hasattr(rows, "double") else rows
    return sp.csr_array(rows.astype(np.float32) if rows.dtype == np.float16 else rows)
