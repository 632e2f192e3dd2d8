"""Tables of a translation's residuals, by token and by n-gram: means with shrinkage, long contexts back off to shorter ones.

The row of a context is the mean residual of its n tokens, after what shorter contexts explain, times n / (n + κ). That is the
posterior mean when rows are Gaussian around those of the shorter contexts. κ has the lowest error on held-out tokens.
Source of the back-off: Katz 1987 (IEEE TASSP 35); of the shrinkage: James & Stein 1961.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from stitch.activations.paired import Tokens
from stitch.modeling.modeling_translation import ngram_keys
from stitch.translation.frequent import frequent
from stitch.translation.types import Ngram, Term, Token

CANDIDATES = 2  # times as many n-grams of each order are considered as may be kept, the most frequent ones
# float64 arrays of the contexts of one order: sums on two splits of three orders, tables of two, and one in the making
ARRAYS = 12
TOGETHER = 1024  # contexts whose gains are computed at a time
REMEMBERED = 2**20  # n-grams whose counts are kept between parts of the text
SHRINKAGES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, torch.inf)

# Tokens and their residuals y − ŷ; every call starts at the beginning.
Residuals = Callable[[], Iterator[tuple[Tokens, Float[Tensor, "_ d"]]]]


@dataclass(frozen=True)
class Sums:
    """For each context: the number of its tokens, and the sum of their residuals."""

    counts: Float[Tensor, " contexts"]
    totals: Float[Tensor, "contexts d"]


@dataclass(frozen=True)
class Table:
    """A row for each context of one order, in order of its key."""

    order: int
    keys: Int64[Tensor, " contexts"]
    rows: Float[Tensor, "contexts d"]

    def look_up(self, keys: Int64[Tensor, " n"]) -> Float[Tensor, "n d"]:
        place = torch.searchsorted(self.keys, keys).clamp_max(len(self.keys) - 1)
        return self.rows[place] * (self.keys[place] == keys)[:, None]


def contexts_within(memory: int, width: int) -> int:
    """Contexts of an order with which `fit_tables` takes at most half of `memory` bytes."""
    return max(1, memory // 2 // (ARRAYS * 8 * width))


def fit_tables(
    windows: Int[Tensor, "windows context"],
    fit: Residuals,
    held_out: Residuals,
    vocabulary: int,
    budget: int,
    most: int | None = None,
) -> list[Term]:
    """Terms that add the tables to a translation with these residuals. The n-grams are those of `windows`.

    The token table has a row for each id that helps. Bigrams and trigrams share `budget` rows, which go to those that explain
    most. Of each order at most `most` contexts are considered.
    """
    shares = {1: vocabulary, 2: budget // 2, 3: budget - budget // 2}
    shares = {order: share for order, share in shares.items() if share and vocabulary**order < 2**63}
    considered = {order: min(CANDIDATES * share, most or CANDIDATES * share) for order, share in shares.items()}
    keys = {order: _candidates(windows, order, vocabulary, number) for order, number in considered.items()}
    keys = {order: found for order, found in keys.items() if len(found)}
    seen, other = _sums(fit, keys, vocabulary), _sums(held_out, keys, vocabulary)
    built: list[Table] = []
    for order, share in shares.items():
        if order in keys:
            table = _table(order, keys[order], seen.pop(order), other.pop(order), built, vocabulary, share)
            built += [table] if len(table.keys) else []
    return [
        Term(Token(0, table.keys) if table.order == 1 else Ngram(table.order, table.keys), table.rows.float())
        for table in built
    ]


def _candidates(windows: Tensor, order: int, vocabulary: int, most: int) -> Int64[Tensor, " contexts"]:
    """Sorted keys: all tokens that occur, or the `most` frequent n-grams of those that occur more than once."""
    least, remembered = (1 if order == 1 else 2), REMEMBERED + 4 * most
    return frequent(windows, order, vocabulary, least=least, most=most, remembered=remembered)


def _sums(residuals: Residuals, keys: dict[int, Tensor], vocabulary: int) -> dict[int, Sums]:
    found: dict[int, Sums] = {}
    for tokens, left in residuals():
        ids, left = tokens.ids, left.double()
        for order, known in keys.items():
            if order not in found:
                found[order] = Sums(left.new_zeros(len(known)), left.new_zeros(len(known), left.shape[1]))
            key = ngram_keys([ids[:, back] for back in range(order)], vocabulary)
            place = torch.searchsorted(known, key).clamp_max(len(known) - 1)
            has = (known[place] == key) & (ids[:, :order] >= 0).all(1)
            found[order].counts.index_add_(0, place[has], torch.ones_like(left[has, 0]))
            found[order].totals.index_add_(0, place[has], left[has])
    return found


def _table(
    order: int, keys: Tensor, seen: Sums, other: Sums, shorter: list[Table], vocabulary: int, most: int
) -> Table:
    """Shrunken means of what shorter contexts leave, with the κ that is best on the held-out tokens; at most `most` rows.

    The totals of `seen` and `other` are overwritten by what is left of them.
    """
    explained = torch.zeros_like(seen.totals)
    for table in shorter:
        explained += table.look_up(keys % vocabulary**table.order)
    left = seen.totals.sub_(seen.counts[:, None] * explained)
    left_other = other.totals.sub_(explained.mul_(other.counts[:, None]))
    squares, agreement = left.square().sum(1), (left * left_other).sum(1)
    del explained

    def error(shrinkage: float) -> float:
        """Squared error on the held-out tokens minus that without the table."""
        weight = 1 / (seen.counts + shrinkage)
        return float((other.counts * weight**2 * squares - 2 * weight * agreement).sum())

    rows = left / (seen.counts + min(SHRINKAGES, key=error))[:, None]
    parts = zip(rows.split(TOGETHER), left.split(TOGETHER), seen.counts.split(TOGETHER), strict=True)
    gain = torch.cat([(2 * row * one - count[:, None] * row.square()).sum(1) for row, one, count in parts])
    kept = gain.argsort(descending=True, stable=True)[:most].sort().values
    kept = kept[gain[kept] > 0]
    return Table(order, keys[kept], rows[kept])
