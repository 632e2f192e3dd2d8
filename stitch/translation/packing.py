"""Brings a translation within a number of bytes: matrices stay, tables get what they earn.

A table by token or by position is cut to its leading directions. They are those of a singular value decomposition in which a
row counts as often as the text reads it, so that the squared error over the text is the least for its rank. n-gram tables keep
the rows that the text reads most and that are longest. All numbers of tables become 8-bit ones. One list holds all directions and
rows, by what each takes off the squared error per byte; the first that fit are kept.
Source of the decomposition: Eckart & Young 1936, Psychometrika 1.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from stitch.modeling.modeling_translation import ngram_keys
from stitch.translation.packed import Packed
from stitch.translation.types import Ngram, Position, Term, Token, Translation
from stitch.translation.unfolded import Unfolded

KEY, SCALE, NUMBER = 8, 4, 4  # bytes
ROUNDING = 1e-10  # of the largest gain; directions below it are rounding errors of float32


@dataclass(frozen=True)
class _Plan:
    """A table with its directions or rows in order of their gain, and the bytes of each. The first direction pays for
    the keys and the fall-back."""

    term: Term
    rows: Float[Tensor, "entries columns"]
    basis: Float[Tensor, "columns d_out"] | None
    gains: Float[Tensor, " items"]
    prices: Float[Tensor, " items"]
    order: Int64[Tensor, " items"]


def pack(
    translation: Translation, limit: int, ids: Int[Tensor, "windows context"], vocabulary: int, dtype: torch.dtype
) -> Translation:
    """The translation with tables that bring it to at most `limit` bytes, if its matrices leave any for them.

    `ids`, below `vocabulary`, are the windows of the text that it was fitted on. Tables without any byte are left out. `dtype` is
    that of the composite, in which tables would be stored otherwise; where they fit as they are, nothing is changed.
    """
    if translation.bytes(dtype) <= limit:
        return translation
    plans = [_plan(term, ids, vocabulary) for term in _tables(translation)]
    kept = _kept(plans, limit - bytes_without_tables(translation, dtype))
    terms = [_term(plan, count) for plan, count in zip(plans, kept, strict=True) if count]
    return replace(translation, terms=(*_others(translation), *terms))


def bytes_without_tables(translation: Translation, dtype: torch.dtype) -> int:
    """The least that `pack` can reach."""
    return replace(translation, terms=_others(translation)).bytes(dtype)


def _others(translation: Translation) -> tuple[Term, ...]:
    return tuple(term for term in translation.terms if not term.is_table)


def _tables(translation: Translation) -> list[Term]:
    return [term for term in translation.terms if term.is_table and term.weight is not None and len(term.weight)]


def _plan(term: Term, ids: Int[Tensor, "windows context"], vocabulary: int) -> _Plan:
    table = _dense(term).double()
    read = _times_read(term, ids, vocabulary)
    if isinstance(term.input, Ngram):
        gains = read * table.square().sum(1)
        prices = torch.full_like(gains, KEY + SCALE + table.shape[1])
        order = (gains / prices).argsort(descending=True, stable=True)
        return _Plan(term, table.float(), None, gains[order], prices, order)
    values, vectors = torch.linalg.eigh(table.T @ (read[:, None] * table))
    gains, vectors = values.flip(0), vectors.flip(1)
    gains = torch.where(gains > ROUNDING * gains[0], gains, 0.0)
    prices = torch.full_like(gains, len(table) + NUMBER * table.shape[1])
    prices[0] += (SCALE + KEY * _has_keys(term)) * len(table)
    prices[0] += 0 if term.fallback is None else NUMBER * term.fallback.weight.numel()
    return _Plan(term, (table @ vectors).float(), vectors.T.float(), gains, prices, torch.arange(len(gains)))


def _dense(term: Term) -> Float[Tensor, "entries d"]:
    return term.weight.folded() if isinstance(term.weight, Unfolded) else term.matrix


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


def _kept(plans: list[_Plan], budget: int) -> list[int]:
    """How many items of each table are kept, in the order of gain per byte until the budget is used up."""
    kept = [0] * len(plans)
    for worth, table, item, price in sorted(_items(plans), reverse=True):
        if worth > 0 and item == -kept[table] and price <= budget:
            kept[table] += 1
            budget -= price
    return kept


def _items(plans: list[_Plan]) -> Iterator[tuple[float, int, int, int]]:
    for table, plan in enumerate(plans):
        worth = (plan.gains / plan.prices).tolist()
        # It pays for more than itself, and must not come after the second.
        if len(worth) > 1 and plan.basis is not None:
            worth[0] = max(worth[:2])
        for item, (one, price) in enumerate(zip(worth, plan.prices.long().tolist(), strict=True)):
            yield one, table, -item, price


def _term(plan: _Plan, count: int) -> Term:
    if plan.basis is not None:
        return replace(plan.term, weight=Packed.of(plan.rows[:, :count], plan.basis[:count]))
    assert isinstance(plan.term.input, Ngram)
    chosen = plan.order[:count].sort().values
    read = replace(plan.term.input, keys=plan.term.input.keys[chosen])
    return replace(plan.term, input=read, weight=Packed.of(plan.rows[chosen], None))
