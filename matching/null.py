"""Nulls: matchings without any information on the correspondence, and otherwise like the real ones."""

# pyright: reportOptionalSubscript=false, reportGeneralTypeIssues=false
# (scipy.sparse carries no types: its shapes are taken for None)

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float64, Int64

from matching.errors import MatchError
from matching.stream import Batches, Codes
from matching.types import Pairs


def draw_columns(
    rows: int, live: Int64[np.ndarray, " live"], draws: int, generator: np.random.Generator
) -> Int64[np.ndarray, "rows drawn"]:
    """For every row, `draws` distinct columns of `live`, uniformly at random (all of them if there are fewer).

    Source: Floyd's subset algorithm (Bentley & Floyd 1987, CACM 30), on all rows at once.
    """
    draws = min(draws, len(live))
    chosen = np.full((rows, draws), -1, np.int64)
    for position, last in enumerate(range(len(live) - draws, len(live))):
        guess = generator.integers(0, last + 1, size=rows)
        taken = (chosen[:, :position] == guess[:, None]).any(axis=1)
        chosen[:, position] = np.where(taken, last, guess)
    return live[chosen]


def shuffled(
    pairs: Pairs, frequency: Float64[np.ndarray, " features"], generator: np.random.Generator, *, strata: int = 10
) -> Pairs:
    """The same rows with the partners of other pairs: wrong partners of about the same frequency.

    Pairs are sorted by the frequency of their B-feature (`frequency`, one per feature of B) and cut into `strata` parts
    of equal size. Within each part, partners are permuted along one random cycle, so that no pair keeps its own. Rows,
    scores and null scores stay unchanged, so weights are those of the real matching.

    Raises: MatchError when there are fewer than two pairs.
    """
    if len(pairs) < 2:
        raise MatchError(f"shuffling needs at least 2 pairs; got {len(pairs)}. Lower the matching threshold.")
    by_frequency = np.argsort(frequency[pairs.cols], kind="stable")
    cols = pairs.cols.copy()
    for stratum in np.array_split(by_frequency, max(1, min(strata, len(pairs) // 2))):
        cycle = generator.permutation(stratum)
        cols[cycle] = pairs.cols[np.roll(cycle, 1)]
    return Pairs(pairs.rows, cols, pairs.scores, pairs.null_scores)


def misaligned(batches: Batches, seed: int) -> Batches:
    """The stream with B's tokens rotated against A's: in each batch, by a random quarter to three quarters of its length.

    Every feature keeps its moments and its sequence in time; only the pairing of tokens is lost. Candidates and
    assignment on this stream give the strictest null: the scores that selecting the best of *all* partners reaches by
    chance, which are high for rare features and few tokens.

    Raises: MatchError while streaming when a batch has fewer than four tokens.
    """

    def stream() -> Iterator[tuple[Codes, Codes]]:
        generator = np.random.default_rng(seed)
        for a, b in batches():
            tokens = b.shape[0]
            if tokens < 4:
                raise MatchError(
                    f"a misaligned stream needs batches of at least 4 tokens; got {tokens}. Use larger batches."
                )
            offset = int(generator.integers(tokens // 4, tokens - tokens // 4))
            yield a, sp.csr_array(sp.vstack([b[offset:], b[:offset]], format="csr"))

    return stream
