"""Tables fitted to the residual of ridge: planted token and n-gram effects are recovered, noise is not fitted."""

from collections.abc import Callable

import pytest
import torch

from allocations import Largest
from stitch.activations.paired import Tokens
from stitch.translation import frequent as counting
from stitch.translation import tables as module
from stitch.translation.tables import contexts_within, fit_tables
from stitch.translation.types import Ngram, Term, Token

pytestmark = pytest.mark.numeric

VOCABULARY, D, BOS = 12, 3, 0


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def windows(count: int, seed: int) -> torch.Tensor:
    ids = torch.randint(1, VOCABULARY, (count, 16), generator=torch.Generator().manual_seed(seed))
    ids[:, 0] = BOS
    return ids


def residuals(ids: torch.Tensor, effect: Callable, noise_level: float, seed: int) -> Callable:
    """Tokens in the form of `stitch.translation.fit`: all but BOS, with the two before each (−1 if there is none)."""
    before, two_before = torch.full_like(ids, -1), torch.full_like(ids, -1)
    before[:, 1:], two_before[:, 2:] = ids[:, :-1], ids[:, :-2]
    history = torch.stack([ids, before, two_before], -1)[:, 1:].flatten(0, 1)
    left = effect(history) + noise_level * noise(len(history), D, seed=seed)
    nowhere = torch.zeros(0, dtype=torch.int64)
    parts = zip(history.split(100), left.split(100), strict=True)
    rows = [(Tokens({}, ids, nowhere, rest), rest) for ids, rest in parts]
    return lambda: iter(rows)


def fitted(effect: Callable, *, noise_level: float = 0.0, budget: int = 400, count: int = 400):
    fit, held = windows(count, 1), windows(count, 2)
    terms = fit_tables(
        fit, residuals(fit, effect, noise_level, 3), residuals(held, effect, noise_level, 4), VOCABULARY, budget
    )
    return {1 if isinstance(term.input, Token) else term.input.order: term for term in terms}


def by_id(term: Term) -> torch.Tensor:
    """The token table with a row for every id."""
    assert isinstance(term.input, Token) and term.input.keys is not None
    return torch.zeros(VOCABULARY, D).index_copy_(0, term.input.keys, term.matrix)


BY_TOKEN, BY_PAIR = noise(VOCABULARY, D), noise(VOCABULARY, VOCABULARY, D, seed=1)


def test_token_effects_are_recovered_in_the_token_table_alone():
    found = fitted(lambda ids: BY_TOKEN[ids[:, 0]])
    assert torch.allclose(by_id(found[1])[1:].double(), BY_TOKEN[1:], atol=0.02)
    assert BOS not in found[1].input.keys  # it does not occur
    others = [term.weight.abs().max() for order, term in found.items() if order > 1]
    assert all(value < 0.02 for value in others)


def test_pair_effects_are_recovered_beside_token_effects():
    found = fitted(lambda ids: BY_PAIR[ids[:, 0], ids[:, 1]])
    pairs, rows = found[2].input.keys, found[2].weight
    token, before = pairs % VOCABULARY, pairs // VOCABULARY
    assert len(pairs) > 0.9 * (VOCABULARY - 1) ** 2
    total = rows + by_id(found[1])[token]
    assert torch.allclose(total.double(), BY_PAIR[token, before], atol=0.1)


def test_tables_fitted_to_noise_are_almost_zero():
    """Without shrinkage, rows of contexts that occur about 45 times would have a root mean square of 0.15 (pairs)
    and more for triples.
    """
    found = fitted(lambda ids: torch.zeros(len(ids), D, dtype=torch.float64), noise_level=1.0)
    for term in found.values():
        assert term.weight.square().mean().sqrt() < 0.03


@pytest.mark.parametrize("budget", [0, 1, 130])
def test_the_budget_counts_rows_of_all_orders_and_keeps_the_most_explanatory(budget):
    strong = torch.zeros(VOCABULARY, VOCABULARY, D, dtype=torch.float64)
    strong[3, 4], strong[5, 6] = 9.0, 5.0
    found = fitted(lambda ids: strong[ids[:, 0], ids[:, 1]] + 0.1 * BY_PAIR[ids[:, 0], ids[:, 1]], budget=budget)
    rows = sum(len(term.weight) for order, term in found.items() if order > 1)
    assert rows <= budget
    if budget == 130:
        kept = set(found[2].input.keys.tolist())
        assert {3 + 4 * VOCABULARY, 5 + 6 * VOCABULARY} <= kept
        assert torch.equal(found[2].input.keys, found[2].input.keys.sort().values)


def test_ngrams_do_not_cross_the_start_of_a_window():
    """Ids before the window's start are −1, and no n-gram contains them."""
    found = fitted(lambda ids: torch.where((ids[:, 2] < 0)[:, None], 1.0, 0.0).expand(-1, D).double())
    first = found.get(3)
    assert first is None or not bool((first.input.keys < 0).any())
    assert isinstance(found[2].input, Ngram)
    starts = found[2].input.keys // VOCABULARY == BOS  # "BOS, t" is the only pair at the start of a window
    assert found[2].weight[starts].mean() > 0.5
    assert found[2].weight[~starts].abs().max() < 0.2


def test_what_is_held_while_tables_are_fitted_takes_at_most_half_of_the_memory():
    fit, held = windows(4000, 1), windows(400, 2)
    streams = [residuals(ids, lambda ids: BY_TOKEN[ids[:, 0]], 0.1, seed) for seed, ids in enumerate((fit, held))]
    most = contexts_within(2**14, D)
    assert most == 2**13 // (12 * 8 * D)
    largest = []
    for number in (most, None):
        with Largest() as seen:
            terms = fit_tables(fit, *streams, VOCABULARY, 2000, number)
        largest.append(seen.numbers)
    assert largest[0] == 100 * D  # the residuals of a part of the text
    assert largest[1] == 11 * 11 * 12 * D and terms  # trigrams, of which 121 begin with BOS


def test_counting_in_parts_finds_the_same_ngrams_and_drops_only_rare_ones(monkeypatch):
    ids = windows(60, 5)
    ids[:, 3:5] = torch.tensor([7, 9])  # one pair in every window
    whole = {order: module._candidates(ids, order, VOCABULARY, 50) for order in (1, 2, 3)}
    monkeypatch.setattr(counting, "COUNTED", 64)
    for order, keys in whole.items():
        assert torch.equal(module._candidates(ids, order, VOCABULARY, 50), keys)
    monkeypatch.setattr(module, "REMEMBERED", 10)
    assert 9 + 7 * VOCABULARY in module._candidates(ids, 2, VOCABULARY, 3)
