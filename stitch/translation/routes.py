"""A matrix per class of tokens: what the stream means for B may depend on the token it stands at, and looking that up is free.

A ridge on A's streams and look-ups adds up what it reads. Here what it leaves unexplained is fitted once more on A's streams,
with a matrix for each class of the current token, all shrunken towards zero, that is towards the one matrix of the ridge. In the
composite the two add up, so that a token still costs the product with a single matrix.
Source: routing by a hash of the token, Roller et al. 2021 (2106.04426), with least squares in the place of training.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int64
from scipy.cluster.vq import kmeans2
from torch import Tensor

from stitch.activations import Tokens
from stitch.translation.tables import Residuals
from stitch.translation.types import Residual, Routed, Term, Token, Translation, merged

ROWS = 32_768  # rows of all matrices together, by default: as large as the n-gram tables
SAMPLED = 16_384  # tokens that classes are found on
SHRINKAGES = (3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5)  # λ, in tokens

Stream = tuple[int, int]  # site of A, tokens back


@dataclass(frozen=True)
class Routes:
    """Per class a matrix on the streams side by side, and a constant. λ in tokens; `gain` is the held-out squared error saved."""

    streams: tuple[Stream, ...]
    classes: Int64[Tensor, " vocabulary"]
    weight: Float[Tensor, "classes d_in d_b"]
    constant: Float[Tensor, "classes d_b"]
    strength: float
    gain: float

    def __call__(self, tokens: Tokens) -> Float[Tensor, "_ d_b"]:
        """What the routes add to ŷ."""
        x, classes = _side_by_side(tokens, self.streams), self.classes[tokens.ids[:, 0]]
        y = torch.zeros(len(x), self.weight.shape[2])
        for one in classes.unique():
            rows = classes == one
            y[rows] = x[rows] @ self.weight[one] + self.constant[one]
        return y


def how_many(wanted: int | None, columns: int, vocabulary: int, memory: int) -> int:
    """The number of classes for matrices on `columns`: as asked, or as ROWS allow; moments take at most half of `memory`."""
    number = ROWS // columns if wanted is None else wanted
    return min(number, vocabulary, memory // 2 // (2 * 8 * (columns + 1) ** 2))


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
    centres, _ = kmeans2(rows[chosen].numpy(), number, minit="++", rng=np.random.default_rng(seed), iter=20)
    return torch.cdist(rows, torch.from_numpy(centres)).argmin(1)


def classes_at_random(vocabulary: int, number: int, seed: int) -> Int64[Tensor, " vocabulary"]:
    return torch.randint(number, (vocabulary,), generator=torch.Generator().manual_seed(seed))


def routes(
    streams: Sequence[Stream],
    classes: Int64[Tensor, " vocabulary"],
    fit: Residuals,
    held_out: Residuals,
) -> Routes:
    """Least squares of the residuals per class, on standardised columns; λ by the error on the held-out tokens."""
    number = int(classes.max()) + 1
    some = _side_by_side(next(fit())[0], streams).double()
    mean, deviation = some.mean(0), some.std(0).clamp_min(1e-12)

    def moments(rows: Residuals) -> tuple[Tensor, Tensor]:
        gram = torch.zeros(number, len(mean) + 1, len(mean) + 1, dtype=torch.float64)
        cross = None
        for tokens, left in rows():
            if cross is None:
                cross = torch.zeros(number, len(mean) + 1, left.shape[1], dtype=torch.float64)
            x = (_side_by_side(tokens, streams) - mean.float()) / deviation.float()
            x = torch.cat([x, x.new_ones(len(x), 1)], 1)
            of = classes[tokens.ids[:, 0]]
            for one in of.unique():
                mine = x[of == one]
                gram[one] += mine.T @ mine
                cross[one] += mine.T @ left[of == one]
        assert cross is not None
        return gram, cross

    (gram, cross), (gram_held, cross_held) = moments(fit), moments(held_out)
    eye = torch.eye(len(mean) + 1, dtype=torch.float64)

    def solved(strength: float) -> Tensor:
        return torch.cholesky_solve(cross, torch.linalg.cholesky(gram + strength * eye))

    def error(weight: Tensor) -> float:
        """Squared error on the held-out tokens, less what it is without routes."""
        return float((weight * (gram_held @ weight)).sum() - 2 * (weight * cross_held).sum())

    errors = {strength: error(solved(strength)) for strength in SHRINKAGES}
    strength = min(errors, key=errors.__getitem__)
    weight = solved(strength)
    matrices = weight[:, :-1] / deviation[:, None]
    constant = weight[:, -1] - mean @ matrices
    held = float(gram_held[:, -1, -1].sum())
    return Routes(
        tuple(streams), classes, matrices.float(), constant.float(), strength, -errors[strength] / max(1.0, held)
    )


def routed(name: str, translation: Translation, found: Routes) -> Translation:
    """`translation` with the routes: its matrices on their streams become routed ones, constants go to the token's table."""
    parts = dict(zip(found.streams, found.weight.chunk(len(found.streams), 1), strict=True))
    terms = []
    for term in translation.terms:
        if isinstance(term.input, Residual) and (stream := (term.input.site, term.input.back)) in parts:
            assert term.weight is not None
            term = Term(Routed(*stream, found.classes), term.weight + parts[stream])
        terms.append(term)
    terms.append(Term(Token(), found.constant[found.classes]))
    return merged(replace(translation, name=name, terms=tuple(terms)))


def _side_by_side(tokens: Tokens, streams: Sequence[Stream]) -> Float[Tensor, "_ d_in"]:
    return torch.cat([tokens.streams[stream].float() for stream in streams], 1)
