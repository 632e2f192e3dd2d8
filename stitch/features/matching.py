"""Matching of the features of two SAEs by the correlation of their codes on the same tokens, with shuffled matchings as null."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float64, Int64

from matching.certificate import Certificate, assign_certified
from matching.correlations import Correlations
from matching.graph import candidates
from matching.null import shuffled
from matching.stream import Batches
from matching.transport import balanced, unbalanced
from matching.types import Candidates, Pairs
from stitch.features.matched import Matched
from stitch.progress import Progress, Steps

ROUNDS = 16  # matchings, at most
SHUFFLES = 20  # shuffled matchings that the real one is compared with


@dataclass(frozen=True)
class Matching:
    """What `match` finds.

    `graph` holds the candidate edges, `pairs` the best one-to-one matching with its scores, and `certificate` a bound on how far
    from the optimum it is. `used` is the matching of the chosen method, which translations use, and `shuffles` are its null.
    `transport` is an unbalanced transport plan, which barycentric translations use. `deviation_b` are the standard deviations of
    B's codes. `pairs` and `transport` are there with every method.
    """

    graph: Candidates
    pairs: Pairs
    certificate: Certificate
    used: Matched
    shuffles: list[Matched]
    transport: Matched
    deviation_b: Float64[np.ndarray, " features_b"]


@dataclass(frozen=True)
class Assigned:
    """The best one-to-one matching of the candidate edges in `graph`, a bound on how far from the optimum it is, and the
    correlations that it is of."""

    correlations: Correlations
    graph: Candidates
    pairs: Pairs
    certificate: Certificate


def assigned(batches: Batches, *, seed: int, budget_bytes: int, progress: Progress | None = None) -> Assigned:
    """Matches the features of A and B one to one, given a stream of sparse codes on the same tokens that can be started again."""
    correlations = Correlations.read(batches, budget_bytes=budget_bytes, threads=torch.get_num_threads())
    heard = partial(progress, "correlations (features)") if progress else lambda done, total: None
    graph = candidates(correlations, generator=np.random.default_rng(seed), progress=heard)
    step = Steps("assignment (rounds, at most)", ROUNDS, progress)
    pairs, certificate = assign_certified(correlations, graph, rounds=ROUNDS, tick=step)
    step.end()
    return Assigned(correlations, graph, pairs, certificate)


def match(batches: Batches, method: str, *, seed: int, budget_bytes: int, progress: Progress | None = None) -> Matching:
    """`assigned`, and what translations through a matching and their null are made of.

    `method` is one of: `hungarian`, the optimal one-to-one assignment; `ot` and `unbalanced`, transport plans on the candidate
    graph with firing frequencies as marginals. A shuffle keeps rows and masses, and exchanges partners that fire about as often.
    """
    best = assigned(batches, seed=seed, budget_bytes=budget_bytes, progress=progress)
    correlations, graph, pairs = best.correlations, best.graph, best.pairs
    moments_a, moments_b = correlations.moments_a, correlations.moments_b
    step = Steps("transport and shuffles (steps)", 2, progress)
    plan = unbalanced(graph, moments_a.frequency, moments_b.frequency)
    if method == "hungarian":
        rows, cols, mass = pairs.rows, pairs.cols, np.ones(len(pairs))
    else:
        chosen = balanced(graph, moments_a.frequency, moments_b.frequency) if method == "ot" else plan
        rows, cols, mass = chosen.rows, chosen.cols, chosen.mass
    step()

    generator = np.random.default_rng(seed + 1)
    partners = [cols, *(_exchanged(cols, moments_b.frequency, generator) for _ in range(SHUFFLES))]
    # One pass over the correlations for the real edges, all shuffled ones and those of the transport plan.
    edges = [(rows, partner, mass) for partner in partners] + [(plan.rows, plan.cols, plan.mass)]
    found = correlations.of(np.concatenate([edge[0] for edge in edges]), np.concatenate([edge[1] for edge in edges]))
    step()

    def matched(
        rows: Int64[np.ndarray, " edges"],
        cols: Int64[np.ndarray, " edges"],
        mass: Float64[np.ndarray, " edges"],
        correlation: Float64[np.ndarray, " edges"],
    ) -> Matched:
        co_moment = correlations.co_moments(rows, cols, correlation)
        arrays = (rows, cols, mass, correlation, co_moment, moments_a.mean, moments_a.second)
        return Matched(*map(torch.from_numpy, arrays))

    ends = np.cumsum([len(edge[0]) for edge in edges])
    parts = zip(edges, np.split(found, ends[:-1]), strict=True)
    used, *shuffles, transport = (matched(*edge, correlation) for edge, correlation in parts)
    return Matching(graph, pairs, best.certificate, used, shuffles, transport, np.sqrt(moments_b.variance))


def _exchanged(
    cols: Int64[np.ndarray, " edges"], frequency: Float64[np.ndarray, " features"], generator: np.random.Generator
) -> Int64[np.ndarray, " edges"]:
    """Replaces every partner by another of about the same firing frequency, and by the same one wherever it occurs."""
    partners, position = np.unique(cols, return_inverse=True)
    zeros = np.zeros(len(partners))
    return shuffled(Pairs(partners, partners, zeros, zeros), frequency, generator).cols[position]
