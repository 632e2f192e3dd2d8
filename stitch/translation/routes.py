"""A matrix per class of tokens: what the stream means for B may depend on the token it stands at, and looking that up is free.

A ridge on A's streams and look-ups adds up what it reads. Here what it leaves unexplained is fitted once more on A's streams,
with a matrix for each class of the current token, all shrunken towards zero, that is towards the one matrix of the ridge. In the
composite the two add up, so that a token still costs the product with a single matrix.
Source: routing by a hash of the token, Roller et al. 2021 (2106.04426), with least squares in the place of training.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter

import numpy as np
import torch
from jaxtyping import Float, Int64
from scipy.cluster.vq import kmeans2
from scipy.spatial.distance import cdist
from torch import Tensor

from stitch.activations.paired import Tokens
from stitch.regression.search import descend
from stitch.translation.tables import Residuals
from stitch.translation.types import Residual, Routed, Term, Token, Translation, merged

ROWS = 32_768  # rows of all matrices together, by default: as large as the n-gram tables
TOGETHER = 16_384  # tokens that moments are taken of at a time
SAMPLED = 16_384  # tokens that classes are found on
SHRINKAGES = (3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5)  # λ, in tokens

Stream = tuple[int, int]  # site of A, tokens back


@dataclass(frozen=True)
class Routes:
    """Per class a matrix on the streams side by side, and a constant. λ in tokens."""

    streams: tuple[Stream, ...]
    classes: Int64[Tensor, " vocabulary"]
    weight: Float[Tensor, "classes d_in d_b"]
    constant: Float[Tensor, "classes d_b"]
    strength: float


def how_many(wanted: int | None, columns: int, distinct: int, memory: int) -> int:
    """The number of classes for matrices on `columns`: as asked, or as ROWS allow, but no more than distinct tokens to sort into
    them; moments take at most half of `memory`."""
    number = ROWS // columns if wanted is None else wanted
    return min(number, distinct, memory // 2 // (2 * 8 * (columns + 1) ** 2))


def classes_by_state(
    states: Float[Tensor, "vocabulary d"], ids: Int64[Tensor, " tokens"], number: int, seed: int
) -> Int64[Tensor, " vocabulary"]:
    """k-means of B's context-free states of the tokens. A token counts by the root of its frequency in `ids`: else the few most
    frequent ones take most classes, or the many that hardly occur do."""
    rows = states.double()
    rows = (rows - rows.mean(0)) / rows.std(0).clamp_min(1e-12)
    frequency = torch.bincount(ids, minlength=len(rows))[: len(rows)].double().sqrt()
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.multinomial(frequency, SAMPLED, replacement=True, generator=generator)
    sample = rows[chosen].numpy()
    centres, _ = kmeans2(sample, _spread_out(sample, number, seed), minit="matrix", iter=20)
    return torch.cdist(rows, torch.from_numpy(centres)).argmin(1)


def _spread_out(rows: np.ndarray, number: int, seed: int) -> np.ndarray:
    """Centres to begin with, by k-means++: those of scipy's `minit="++"`, which measures the distances to all of them anew for
    each, where those to the latest are enough.

    Source: Arthur & Vassilvitskii 2007, SODA.
    """
    generator = np.random.default_rng(seed)
    centres = [rows[generator.integers(len(rows))]]
    nearest = np.full(len(rows), np.inf)
    while len(centres) < number:
        nearest = np.minimum(nearest, cdist(centres[-1:], rows, metric="sqeuclidean")[0])
        total = (nearest / nearest.sum()).cumsum()
        centres.append(rows[np.searchsorted(total, generator.uniform())])
    return np.array(centres)


def classes_at_random(vocabulary: int, number: int, seed: int) -> Int64[Tensor, " vocabulary"]:
    return torch.randint(number, (vocabulary,), generator=torch.Generator().manual_seed(seed))


def fit_routes(
    streams: Sequence[Stream],
    classes: Int64[Tensor, " vocabulary"],
    fit: Residuals,
    held_out: Residuals,
) -> Routes:
    """Least squares of the residuals per class, on standardised columns; λ by the error on the held-out tokens."""
    number = int(classes.max()) + 1
    first, left = next(fit())
    some = _side_by_side(first, streams).double()
    mean, deviation = some.mean(0), some.std(0).clamp_min(1e-12)

    def moments(rows: Residuals) -> tuple[Tensor, Tensor]:
        gram = torch.zeros(number, len(mean) + 1, len(mean) + 1, dtype=torch.float64)
        cross = torch.zeros(number, len(mean) + 1, left.shape[1], dtype=torch.float64)
        for x, of, y in _together(rows(), streams, classes):
            x = torch.cat([(x - mean.float()) / deviation.float(), x.new_ones(len(x), 1)], 1)
            for one in of.unique():
                mine = x[of == one]
                gram[one] += mine.T @ mine
                cross[one] += mine.T @ y[of == one]
        return gram, cross

    (gram, cross), (gram_held, cross_held) = moments(fit), moments(held_out)

    def attempt(index: int) -> tuple[float, float, Tensor]:
        """Squared error on the held-out tokens, less what it is without routes; λ; weights. In the memory of one more matrix."""
        error, weight = 0.0, torch.empty_like(cross)
        for one in range(number):
            matrix = gram[one].clone()
            matrix.diagonal().add_(SHRINKAGES[index])
            weight[one] = torch.cholesky_solve(cross[one], torch.linalg.cholesky(matrix))
            error += float((weight[one] * (gram_held[one] @ weight[one] - 2 * cross_held[one])).sum())
        return error, SHRINKAGES[index], weight

    middle, count = len(SHRINKAGES) // 2, len(SHRINKAGES)
    _, strength, weight = descend(attempt, itemgetter(0), start=middle, step=1, count=count)
    matrices = weight[:, :-1] / deviation[:, None]
    constant = weight[:, -1] - mean @ matrices
    return Routes(tuple(streams), classes, matrices.float(), constant.float(), strength)


def routed(name: str, translation: Translation, found: Routes) -> Translation:
    """`translation` with the routes: its matrices on their streams become routed ones, constants go to the token's table."""
    linear = {
        (term.input.site, term.input.back): term.weight
        for term in translation.terms
        if isinstance(term.input, Residual) and term.weight is not None
    }
    widths = [len(linear[stream]) for stream in found.streams]  # the parts of a composite may differ
    parts = dict(zip(found.streams, found.weight.split(widths, 1), strict=True))
    terms = []
    for term in translation.terms:
        if isinstance(term.input, Residual) and (stream := (term.input.site, term.input.back)) in parts:
            term = Term(Routed(*stream, found.classes), linear[stream] + parts[stream])
        terms.append(term)
    terms.append(Term(Token(), found.constant[found.classes]))
    return merged(replace(translation, name=name, terms=tuple(terms)))


def _together(
    rows: Iterator[tuple[Tokens, Tensor]], streams: Sequence[Stream], classes: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Streams, classes and residuals of TOGETHER tokens at a time: adding to every class's moments has a price of its own."""
    waiting: list[tuple[Tensor, Tensor, Tensor]] = []
    for tokens, left in rows:
        waiting.append((_side_by_side(tokens, streams), classes[tokens.ids[:, 0]], left))
        if sum(len(part[0]) for part in waiting) >= TOGETHER:
            yield _joined(waiting)
            waiting = []
    if waiting:
        yield _joined(waiting)


def _joined(parts: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    x, of, left = zip(*parts, strict=True)
    return torch.cat(x), torch.cat(of), torch.cat(left)


def _side_by_side(tokens: Tokens, streams: Sequence[Stream]) -> Float[Tensor, "_ d_in"]:
    return torch.cat([tokens.streams[stream].float() for stream in streams], 1)
