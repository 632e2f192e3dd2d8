"""The row `routed`: a matrix per class of tokens, as how B should read A's stream may depend on the current token.

The residuals of a ridge are fitted again on A's streams, with one matrix per class of the current token. These matrices are
shrunken towards zero, that is, towards the ridge's own matrix. In the composite both are added up beforehand, so that a token
costs the product with one matrix, which is looked up.
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
from stitch.progress import Progress, Steps
from stitch.regression.search import descend
from stitch.translation.tables import Residuals
from stitch.translation.types import Residual, Routed, Term, Token, Translation, merged

ROWS = 32_768  # of all matrices together, by default: as many as the n-gram tables have
TOGETHER = 16_384  # tokens that are added to the moments at a time
SAMPLED = 16_384  # tokens that k-means is run on
SHRINKAGES = (3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5)  # λ, in tokens

Stream = tuple[int, int]  # site of A, tokens back


@dataclass(frozen=True)
class Routes:
    """A matrix on the streams, side by side, and a constant for each class. `strength` is λ, in tokens."""

    streams: tuple[Stream, ...]
    classes: Int64[Tensor, " vocabulary"]
    weight: Float[Tensor, "classes d_in d_b"]
    constant: Float[Tensor, "classes d_b"]
    strength: float


def how_many(wanted: int | None, columns: int, distinct: int, memory: int, width: int) -> int:
    """The number of classes: `wanted`, or as many as keep all matrices of `columns` rows within ROWS.

    There are no more classes than `distinct` token ids, and no more than keep moments and weights of two splits and two λ, with
    targets of `width` numbers, within half of `memory` bytes.
    """
    number = ROWS // columns if wanted is None else wanted
    return min(number, distinct, memory // 2 // (2 * 8 * (columns + 1) * (columns + 1 + 2 * width)))


def classes_by_state(
    states: Float[Tensor, "entries d"], rows: Int64[Tensor, " tokens"], number: int, seed: int
) -> Int64[Tensor, " entries"]:
    """k-means of B's context-free states, each weighed by the square root of its frequency among `rows`, the tokens' states.

    Weighed by frequency, the few most frequent tokens would take most classes; unweighed, the many rare ones would.
    """
    mean, deviation = states.mean(0, dtype=torch.float64), states.std(0).double().clamp_min(1e-12)
    frequency = torch.bincount(rows, minlength=len(states)).double().sqrt()
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.multinomial(frequency, SAMPLED, replacement=True, generator=generator)
    sample = ((states[chosen].double() - mean) / deviation).numpy()
    found, _ = kmeans2(sample, initial_centres(sample, number, seed), minit="matrix", iter=20)
    centres = torch.from_numpy(found)
    parts = [torch.cdist((part.double() - mean) / deviation, centres).argmin(1) for part in states.split(TOGETHER)]
    return torch.cat(parts)


def over_vocabulary(
    classes: Int64[Tensor, " entries"], keys: Int64[Tensor, " entries"] | None, vocabulary: int
) -> Int64[Tensor, " vocabulary"]:
    """Classes of all ids, given those of `keys` (None: of all). Other ids get one of their own: nothing is known of their matrix,
    and fitted to no token it is that of the ridge."""
    if keys is None:
        return classes
    return torch.full((vocabulary,), int(classes.max()) + 1).index_copy_(0, keys, classes)


def initial_centres(rows: np.ndarray, number: int, seed: int) -> np.ndarray:
    """The initial centres of k-means++, the same as scipy's `minit="++"` gives.

    scipy computes the distances to all centres anew for each centre; here only those to the latest one are computed.

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


def classes_at_random(entries: int, number: int, seed: int) -> Int64[Tensor, " entries"]:
    return torch.randint(number, (entries,), generator=torch.Generator().manual_seed(seed))


def fit_routes(
    streams: Sequence[Stream],
    classes: Int64[Tensor, " vocabulary"],
    fit: Residuals,
    held_out: Residuals,
    progress: Progress | None = None,
) -> Routes:
    """Least squares of the residuals for each class, on standardised columns; λ by the error on held-out tokens."""
    number = int(classes.max()) + 1
    first, left = next(fit())
    some = _side_by_side(first, streams).double()
    mean, deviation = some.mean(0), some.std(0).clamp_min(1e-12)

    def moments(rows: Residuals) -> tuple[Tensor, Tensor]:
        gram = torch.zeros(number, len(mean) + 1, len(mean) + 1, dtype=torch.float64)
        cross = torch.zeros(number, len(mean) + 1, left.shape[1], dtype=torch.float64)
        for x, of, y in _together(rows(), streams, classes):
            x[:, :-1].sub_(mean.float()).div_(deviation.float())
            for one in of.unique():
                mine = x[of == one]
                gram[one] += mine.T @ mine
                cross[one] += mine.T @ y[of == one]
            del x, of, y  # before the next are collected
        return gram, cross

    (gram, cross), (gram_held, cross_held) = moments(fit), moments(held_out)
    step = Steps("matrices by class of token (solved, at most)", number * len(SHRINKAGES), progress)

    def attempt(index: int) -> tuple[float, float, Tensor]:
        """Squared error on the held-out tokens minus that without routes; λ; weights. Solved class by class to save memory."""
        error, weight = 0.0, torch.empty_like(cross)
        for one in range(number):
            matrix = gram[one].clone()
            matrix.diagonal().add_(SHRINKAGES[index])
            weight[one] = torch.cholesky_solve(cross[one], torch.linalg.cholesky(matrix))
            error += float((weight[one] * (gram_held[one] @ weight[one] - 2 * cross_held[one])).sum())
            step()
        return error, SHRINKAGES[index], weight

    middle, count = len(SHRINKAGES) // 2, len(SHRINKAGES)
    _, strength, weight = descend(attempt, itemgetter(0), start=middle, step=1, count=count)
    step.end()
    matrices = weight[:, :-1] / deviation[:, None]
    constant = weight[:, -1] - mean @ matrices
    return Routes(tuple(streams), classes, matrices.float(), constant.float(), strength)


def routed(name: str, translation: Translation, found: Routes) -> Translation:
    """`translation` with the routes added to its matrices on the same streams; their constants go to the token's table."""
    linear = {
        (term.input.site, term.input.back): term.matrix
        for term in translation.terms
        if isinstance(term.input, Residual) and term.weight is not None
    }
    widths = [len(linear[stream]) for stream in found.streams]  # they differ where A is a composite of such models
    parts = dict(zip(found.streams, found.weight.split(widths, 1), strict=True))
    terms = []
    for term in translation.terms:
        if isinstance(term.input, Residual) and (stream := (term.input.site, term.input.back)) in parts:
            term = Term(Routed(*stream, found.classes), linear[stream] + parts[stream])
        terms.append(term)
    # The class of an id that does not occur has no constant, so the table's keys are enough.
    keys = next(
        (term.input.keys for term in translation.terms if isinstance(term.input, Token) and not term.input.back), None
    )
    terms.append(Term(Token(0, keys), found.constant[found.classes if keys is None else found.classes[keys]]))
    return merged(replace(translation, name=name, terms=tuple(terms)))


def _together(
    rows: Iterator[tuple[Tokens, Tensor]], streams: Sequence[Stream], classes: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Streams with a column of ones, classes and residuals of TOGETHER tokens at a time, as adding to the moments of each class
    has a fixed cost."""
    waiting: list[tuple[Tensor, Tensor, Tensor]] = []
    for tokens, left in rows:
        waiting.append((_side_by_side(tokens, streams), classes[tokens.ids[:, 0]], left))
        if sum(len(part[0]) for part in waiting) >= TOGETHER:
            yield _joined(waiting)
    if waiting:
        yield _joined(waiting)


def _joined(parts: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """New arrays of all parts, whose list is emptied so that they are not held beside the new ones."""
    x, of, left = zip(*parts, strict=True)
    parts.clear()
    beside = torch.ones(sum(map(len, x)), x[0].shape[1] + 1)
    for place, one in zip(beside.split([*map(len, x)]), x, strict=True):
        place[:, :-1] = one
    return beside, torch.cat(of), torch.cat(left)


def _side_by_side(tokens: Tokens, streams: Sequence[Stream]) -> Float[Tensor, "_ d_in"]:
    return torch.cat([tokens.streams[stream].float() for stream in streams], 1)
