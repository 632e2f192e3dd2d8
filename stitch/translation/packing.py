"""Brings a translation within a number of bytes: matrices stay, tables get what they earn.

A table by token or by position is cut to its leading directions. They are those of a singular value decomposition in which a
row counts as often as the text reads it, so that the squared error over the text is the least for its rank. n-gram tables keep
the rows that the text reads most and that are longest. All numbers of tables become 8-bit ones. One list holds all directions and
rows, by what each takes off the squared error per byte; the first that fit are kept.
No table is made: its rows are computed from their factors, some at a time, for the decomposition and again for what is kept.
Source of the decomposition: Eckart & Young 1936, Psychometrika 1.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from stitch.modeling.modeling_translation import ngram_keys
from stitch.translation.packed import Packed
from stitch.translation.types import Ngram, Position, Term, Token, Translation
from stitch.translation.unfolded import TOGETHER, Unfolded, unfolded

KEY, SCALE, NUMBER = 8, 4, 4  # bytes
ROUNDING = 1e-10  # of the largest gain; directions below it are rounding errors of float32
COPIES = 6  # float64 copies of the rows that are computed at a time


@dataclass(frozen=True)
class _Plan:
    """A table with its directions or rows in order of their gain, and the bytes of each. The first direction pays for
    the keys and the fall-back. Directions are columns."""

    term: Term
    directions: Float[Tensor, "d_out columns"] | None
    gains: Float[Tensor, " items"]
    prices: Float[Tensor, " items"]
    order: Int64[Tensor, " items"]


def pack(
    translation: Translation,
    limit: int,
    ids: Int[Tensor, "windows context"],
    vocabulary: int,
    dtype: torch.dtype,
    *,
    memory: int,
    multiply_adds: int | None = None,
    tick: Callable[[], None] = lambda: None,
) -> Translation:
    """The translation with tables that bring it to at most `limit` bytes, if its matrices leave any for them.

    Directions take no more than `multiply_adds` per token in all; None: any number. Rows of n-grams take none.

    `ids`, below `vocabulary`, are the windows of the text that it was fitted on. Tables without any byte are left out. `dtype` is
    that of the composite, in which tables would be stored otherwise; where they fit as they are, nothing is changed. Of `memory`
    bytes the rows that are computed at a time take at most a sixteenth. `tick` is called `steps` times, or never.
    """
    if translation.bytes(dtype) <= limit:
        return translation
    plans = []
    for term in _tables(translation):
        plans.append(_plan(term, ids, vocabulary, memory))
        tick()
    kept = _kept(plans, limit - bytes_without_tables(translation, dtype), multiply_adds)
    terms = []
    for plan, count in zip(plans, kept, strict=True):
        terms += [_term(plan, count, memory)] if count else []
        tick()
    return replace(translation, terms=(*_others(translation), *terms))


def steps(translation: Translation) -> int:
    """Each table is read for its directions or rows, and again for what is kept of them."""
    return 2 * len(_tables(translation))


def bytes_without_tables(translation: Translation, dtype: torch.dtype) -> int:
    """The least that `pack` can reach."""
    return replace(translation, terms=_others(translation)).bytes(dtype)


def _others(translation: Translation) -> tuple[Term, ...]:
    return tuple(term for term in translation.terms if not term.is_table)


def _tables(translation: Translation) -> list[Term]:
    return [term for term in translation.terms if term.is_table and term.weight is not None and len(term.weight)]


def _plan(term: Term, ids: Int[Tensor, "windows context"], vocabulary: int, memory: int) -> _Plan:
    table = _factors(term)
    entries, width = table.shape
    parts, read = _parts(table, memory), _times_read(term, ids, vocabulary)
    if isinstance(term.input, Ngram):
        gains = read * torch.cat([rows.double().square().sum(1) for rows in parts])
        prices = torch.full_like(gains, KEY + SCALE + width)
        order = (gains / prices).argsort(descending=True, stable=True)
        return _Plan(term, None, gains[order], prices, order)
    values, vectors = torch.linalg.eigh(_second_moment(parts, read, width))
    gains, vectors = values.flip(0), vectors.flip(1)
    gains = torch.where(gains > ROUNDING * gains[0], gains, 0.0)
    prices = torch.full_like(gains, entries + NUMBER * width)
    prices[0] += (SCALE + KEY * _has_keys(term)) * entries
    prices[0] += 0 if term.fallback is None else NUMBER * term.fallback.weight.numel()
    return _Plan(term, vectors, gains, prices, torch.arange(len(gains)))


def _factors(term: Term) -> Unfolded:
    return unfolded(term.weight if isinstance(term.weight, Unfolded) else term.matrix)


def _parts(
    table: Unfolded, memory: int, index: Int64[Tensor, " n"] | None = None
) -> Iterator[Float[Tensor, "_ d_out"]]:
    """All rows, or those with the numbers `index`, as many at a time as take a sixteenth of the memory."""
    widest = max(table.shape[1], *(rows.shape[1] for rows, _ in table.factors))
    return table.parts(max(1, min(TOGETHER, memory // 16 // (COPIES * 8 * widest))), index)


def _second_moment(
    parts: Iterable[Tensor], read: Float[Tensor, " entries"], width: int
) -> Float[Tensor, "d_out d_out"]:
    """Σ over rows of the times that a row is read · row ⊗ row."""
    total, start = torch.zeros(width, width, dtype=torch.float64), 0
    for rows in parts:
        times, start = read[start : start + len(rows), None], start + len(rows)
        rows = rows.double()
        total += rows.T @ (times * rows)
    return total


def _has_keys(term: Term) -> bool:
    return isinstance(term.input, Token) and term.input.keys is not None


def _times_read(term: Term, ids: Int[Tensor, "windows context"], vocabulary: int) -> Float[Tensor, " entries"]:
    """How often the text reads each row."""
    assert term.weight is not None
    entries = len(term.weight)
    match term.input:
        case Token(back, keys):
            read = ids[:, : ids.shape[1] - back].flatten().long()
            place = read if keys is None else torch.searchsorted(keys, read).clamp_max(entries - 1)
            known = torch.ones_like(place, dtype=torch.bool) if keys is None else keys[place] == read
        case Ngram(order, keys):
            columns = [ids[:, order - 1 - back : ids.shape[1] - back].long() for back in range(order)]
            read = ngram_keys(columns, vocabulary).flatten()
            place = torch.searchsorted(keys, read).clamp_max(entries - 1)
            known = keys[place] == read
        case Position():
            return torch.where(torch.arange(entries) < ids.shape[1], len(ids), 0).double()
        case _:
            raise AssertionError(term.input)
    return torch.bincount(place[known], minlength=entries).double()


def _kept(plans: list[_Plan], budget: int, multiply_adds: int | None) -> list[int]:
    """How many items of each table are kept, in the order of gain per byte until the budget is used up."""
    kept = [0] * len(plans)
    room = float("inf") if multiply_adds is None else multiply_adds
    for worth, table, item, price in sorted(_items(plans), reverse=True):
        directions = plans[table].directions
        products = 0 if directions is None else len(directions)
        if worth > 0 and item == -kept[table] and price <= budget and products <= room:
            kept[table] += 1
            budget, room = budget - price, room - products
    return kept


def _items(plans: list[_Plan]) -> Iterator[tuple[float, int, int, int]]:
    for table, plan in enumerate(plans):
        worth = (plan.gains / plan.prices).tolist()
        # It pays for more than itself, and must not come after the second.
        if len(worth) > 1 and plan.directions is not None:
            worth[0] = max(worth[:2])
        for item, (one, price) in enumerate(zip(worth, plan.prices.long().tolist(), strict=True)):
            yield one, table, -item, price


def _term(plan: _Plan, count: int, memory: int) -> Term:
    table = _factors(plan.term)
    if plan.directions is not None:
        directions = plan.directions[:, :count]
        parts = partial(_parts, unfolded(table, directions), memory)
        return replace(plan.term, weight=Packed.of(parts, directions.T.float()))
    assert isinstance(plan.term.input, Ngram)
    chosen = plan.order[:count].sort().values
    read = replace(plan.term.input, keys=plan.term.input.keys[chosen])
    return replace(plan.term, input=read, weight=Packed.of(partial(_parts, table, memory, chosen), None))
