"""Soft matching by optimal transport on the candidate graph: exact when balanced, entropic when mass may be dropped.

Both use the edges of the graph only. A dense cost matrix is never formed, so memory is proportional to the number of candidates.
"""

import importlib
import warnings
from types import ModuleType

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float64, Int64

from matching.errors import MatchError
from matching.types import Candidates, Plan


def balanced(
    candidates: Candidates, weights_a: Float64[np.ndarray, " rows"], weights_b: Float64[np.ndarray, " cols"]
) -> Plan:
    """The transport plan P of minimal cost Σ P (1 − correlation₊) with row sums `weights_a` and column sums `weights_b`.

    It is exact over *all* pairs of features, where pairs outside the graph count as uncorrelated (cost 1). Mass without a
    correlated partner passes through a dummy row and a dummy column at that cost, and is distributed afterwards over
    pairs outside the graph; every distribution costs the same. Weights must be nonnegative; they are scaled to sum to 1.

    Raises: MatchError when POT is not installed, when weights are invalid, or when the solver does not converge.
    Source: Bonneel et al. 2011, ACM TOG 30 (network simplex, POT's `ot.emd` on sparse costs).
    """
    ot = _import_pot()
    weights_a, weights_b = _distribution("a", weights_a), _distribution("b", weights_b)
    full_a, full_b = np.flatnonzero(weights_a), np.flatnonzero(weights_b)  # the solver gets only nodes with mass
    cost = _cost_with_dummies(candidates, weights_a, weights_b)
    supply, demand = np.append(weights_a[full_a], 1.0), np.append(weights_b[full_b], 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exit status is checked below
        flow, log = ot.emd(supply, demand, cost, numItermax=2**31 - 1, log=True)
    if log["result_code"] != 1:
        raise MatchError(
            f"the transport solver must converge; POT reports: {log['warning']}. Lower `top` and try again."
        )
    flow = flow.tocoo()
    direct = (flow.row < len(full_a)) & (flow.col < len(full_b))
    at = full_a[flow.row[direct]], full_b[flow.col[direct]]
    plan = sp.csr_array((flow.data[direct], at), shape=candidates.shape)
    return _plan(plan + _layout(weights_a - plan.sum(axis=1), weights_b - plan.sum(axis=0)))


def _cost_with_dummies(
    candidates: Candidates, weights_a: Float64[np.ndarray, " rows"], weights_b: Float64[np.ndarray, " cols"]
) -> sp.coo_array:
    """Sparse costs between nodes with mass, with a dummy row and a dummy column last.

    A path through the dummies costs 1, as an uncorrelated pair. Edges that cost more are left out.
    """
    useful = (candidates.correlation > 0) & (weights_a[candidates.rows] > 0) & (weights_b[candidates.cols] > 0)
    full_a, full_b = np.flatnonzero(weights_a), np.flatnonzero(weights_b)
    edge_rows = np.searchsorted(full_a, candidates.rows[useful])
    edge_cols = np.searchsorted(full_b, candidates.cols[useful])
    rows, cols = len(full_a), len(full_b)
    costs = [1 - candidates.correlation[useful], np.full(rows, 0.5), np.full(cols, 0.5), [0.0]]
    from_rows = [edge_rows, np.arange(rows), np.full(cols, rows), [rows]]
    to_cols = [edge_cols, np.full(rows, cols), np.arange(cols), [cols]]
    entries = (np.concatenate(costs), (np.concatenate(from_rows), np.concatenate(to_cols)))
    return sp.coo_array(entries, shape=(rows + 1, cols + 1))


def unbalanced(
    candidates: Candidates,
    weights_a: Float64[np.ndarray, " rows"],
    weights_b: Float64[np.ndarray, " cols"],
    *,
    regularisation: float = 0.02,
    marginal_penalty: float = 0.2,
    iterations: int = 10_000,
) -> Plan:
    """The plan on the graph that minimises ⟨P, 1 − correlation⟩ + ε KL(P ‖ a⊗b) + ρ KL(P1 ‖ a) + ρ KL(Pᵀ1 ‖ b).

    ε = `regularisation` sets how soft the plan is, in units of correlation. ρ = `marginal_penalty` is the cost of a unit of
    missing mass: a feature whose best partner costs far more than 2ρ is dropped. Weights must be nonnegative; they are
    scaled to sum to 1. The scaling iterations run in the log domain over the edges; POT, which needs a dense cost, is not
    used.

    Raises: MatchError when weights or parameters are invalid, or when the iterations do not converge.
    Source: Chizat et al. 2018, Mathematics of Computation 87.
    """
    if not (regularisation > 0 and marginal_penalty > 0):
        raise MatchError(
            "regularisation and marginal_penalty must be positive for unbalanced transport; got "
            f"{regularisation} and {marginal_penalty}. For no regularisation use `balanced`."
        )
    weights_a, weights_b = _distribution("a", weights_a), _distribution("b", weights_b)
    used = (weights_a[candidates.rows] > 0) & (weights_b[candidates.cols] > 0)
    rows, cols = candidates.rows[used], candidates.cols[used]
    # log of the kernel a exp(−cost / ε) b, with which the potentials below are pure scalings
    kernel = np.log(weights_a[rows] * weights_b[cols]) - (1 - candidates.correlation[used]) / regularisation
    row_sums, col_sums = _LogSums(rows, candidates.shape[0]), _LogSums(cols, candidates.shape[1])
    log_a, log_b = np.log(np.maximum(weights_a, 1e-300)), np.log(np.maximum(weights_b, 1e-300))
    damping = marginal_penalty / (marginal_penalty + regularisation)
    scale_a, scale_b = np.zeros(len(weights_a)), np.zeros(len(weights_b))
    for _ in range(iterations):
        before = scale_a
        scale_a = damping * (log_a - row_sums(kernel + scale_b[cols]))
        scale_b = damping * (log_b - col_sums(kernel + scale_a[rows]))
        if np.abs(scale_a - before).max(initial=0.0) < 1e-10:
            mass = np.exp(kernel + scale_a[rows] + scale_b[cols])
            return _plan(sp.csr_array((mass, (rows, cols)), shape=candidates.shape))
    raise MatchError(
        f"unbalanced transport must converge within {iterations} iterations; it did not with `regularisation` "
        f"{regularisation}. Raise `regularisation` or lower `marginal_penalty`."
    )


class _LogSums:
    """log Σ exp over the edges of each node; 0 for nodes without edges, whose scaling has no effect."""

    def __init__(self, nodes: Int64[np.ndarray, " edges"], count: int) -> None:
        self.order = np.argsort(nodes, kind="stable")
        self.present, self.starts = np.unique(nodes[self.order], return_index=True)
        self.position = np.searchsorted(self.present, nodes[self.order])
        self.count = count

    def __call__(self, values: Float64[np.ndarray, " edges"]) -> Float64[np.ndarray, " nodes"]:
        sums = np.zeros(self.count)
        if len(self.present):
            values = values[self.order]
            highest = np.maximum.reduceat(values, self.starts)
            total = np.add.reduceat(np.exp(values - highest[self.position]), self.starts)
            sums[self.present] = highest + np.log(total)
        return sums


def _layout(left_a: Float64[np.ndarray, " rows"], left_b: Float64[np.ndarray, " cols"]) -> sp.csr_array:
    """A coupling of two remainders of equal mass by the north-west corner rule, which has few entries."""
    left_a, left_b = (np.where(left > 1e-14, left, 0.0) for left in (left_a, left_b))
    ends_a, ends_b = np.cumsum(left_a), np.cumsum(left_b)
    total = min(ends_a[-1], ends_b[-1])
    cuts = np.unique(np.concatenate([[0.0], ends_a, ends_b]))
    cuts = cuts[cuts <= total]
    middles, mass = (cuts[1:] + cuts[:-1]) / 2, np.diff(cuts)
    at = np.searchsorted(ends_a, middles, side="right"), np.searchsorted(ends_b, middles, side="right")
    return sp.csr_array((mass, at), shape=(len(left_a), len(left_b)))


def _plan(matrix: sp.csr_array) -> Plan:
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    entries = matrix.tocoo()
    return Plan(entries.row.astype(np.int64), entries.col.astype(np.int64), entries.data)


def _distribution(side: str, weights: Float64[np.ndarray, " features"]) -> Float64[np.ndarray, " features"]:
    total = weights.sum()
    if not (np.isfinite(total) and (weights >= 0).all() and total > 0):
        raise MatchError(
            f"weights_{side} must be finite, nonnegative and not all zero; got others. Use firing frequencies."
        )
    return weights / total


def _import_pot() -> ModuleType:
    try:
        return importlib.import_module("ot")
    except ImportError:
        raise MatchError(
            "balanced transport needs the extra ot, of which POT is not installed: "
            "pip install '.[ot]' in a clone of the repository."
        ) from None
