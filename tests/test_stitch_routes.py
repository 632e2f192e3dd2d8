"""One matrix per class of tokens: planted matrices are recovered, none are invented, and the composite applies what
was fitted.
"""

import numpy as np
import pytest
import torch
from scipy.cluster.vq import kmeans2

from stitch.activations.paired import Tokens
from stitch.modeling.modeling_translation import FEW_ROWS, TranslationModule, by_class
from stitch.translation.module import translation_config, translation_tensors
from stitch.translation.routes import (
    Routes,
    classes_at_random,
    classes_by_state,
    fit_routes,
    how_many,
    initial_centres,
    routed,
)
from stitch.translation.types import Residual, Routed, Term, Token, Translation
from tiny import noise

pytestmark = pytest.mark.numeric

VOCABULARY, D_A, D_B, CLASSES = 40, 6, 5, 4
STREAMS = ((3, 0), (3, 1))
OF = torch.arange(VOCABULARY) % CLASSES
PLANTED, CONSTANT = noise(CLASSES, 2 * D_A, D_B), noise(CLASSES, D_B, seed=1)


def tokens(count: int, seed: int) -> Tokens:
    ids = torch.randint(VOCABULARY, (count, 1), generator=torch.Generator().manual_seed(seed))
    # columns of very different scale and mean, as in a residual stream
    scale = torch.logspace(-0.5, 0.5, D_A)
    streams = {stream: noise(count, D_A, seed=seed + 10 + stream[1]) * scale + 3 * scale for stream in STREAMS}
    return Tokens(streams, ids, torch.zeros(count, dtype=torch.int64), torch.zeros(count, D_B))


def residuals(count: int, seed: int, *, effect: bool, level: float = 0.1):
    seen = tokens(count, seed)
    left = level * noise(count, D_B, seed=seed + 20)
    if effect:
        x = torch.cat([seen.streams[stream] for stream in STREAMS], 1)
        of = OF[seen.ids[:, 0]]
        left += torch.einsum("td,tde->te", x, PLANTED[of]) + CONSTANT[of]
    return lambda: iter([(seen, left)])


def fitted(*, effect: bool) -> Routes:
    return fit_routes(STREAMS, OF, residuals(4000, 0, effect=effect), residuals(500, 1, effect=effect))


def added(found: Routes, seen: Tokens) -> torch.Tensor:
    """The term that routes add to ŷ, by its formula."""
    x, of = torch.cat([seen.streams[stream] for stream in found.streams], 1), found.classes[seen.ids[:, 0]]
    return torch.einsum("td,tde->te", x, found.weight[of]) + found.constant[of]


def test_planted_matrices_are_recovered():
    found = fitted(effect=True)
    assert torch.allclose(found.weight, PLANTED, atol=0.1) and torch.allclose(found.constant, CONSTANT, atol=0.5)
    seen, left = next(residuals(500, 2, effect=True, level=0.0)())
    assert (added(found, seen) - left).norm() < 0.02 * left.norm()


def test_without_an_effect_almost_nothing_is_added():
    found = fitted(effect=False)
    seen, _ = next(residuals(500, 2, effect=False)())
    assert added(found, seen).square().mean() < 0.05 * 0.1**2 and found.strength >= 1000


def test_the_composite_applies_what_was_fitted_at_the_cost_of_one_matrix():
    found = fitted(effect=True)
    base = Translation(
        "base", (*(Term(Residual(*stream), noise(D_A, D_B, seed=stream[1])) for stream in STREAMS),), noise(D_B)
    )
    whole = routed("routed", base, found)
    assert [type(term.input) for term in whole.terms] == [Routed, Routed, Token]
    assert whole.multiply_adds == base.multiply_adds == 2 * D_A * D_B and whole.sites == {3}
    module = TranslationModule(translation_config(whole, None, 3, D_A, VOCABULARY))
    module.load_state_dict(translation_tensors(whole, torch.float32))
    x = noise(1, 9, D_A, seed=7)
    ids = torch.randint(VOCABULARY, (1, 9), generator=torch.Generator().manual_seed(5))
    before = torch.cat([torch.zeros(1, 2, D_A), x[:, 1:-1]], 1)  # before the first token the stream counts as absent
    seen = Tokens({(3, 0): x[0], (3, 1): before[0]}, ids.T, torch.arange(9), torch.zeros(9, D_B))
    matrices = [term.weight for term in base.terms]
    expected = base.bias + x[0] @ matrices[0] + before[0] @ matrices[1] + added(found, seen)
    with torch.no_grad():
        got = module({3: x}, ids, torch.arange(9)[None])[0]
    assert torch.allclose(got, expected, atol=1e-3)


def test_a_single_token_is_multiplied_by_the_same_matrix_as_in_a_batch():
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 40, 6, generator=generator), torch.randn(5, 6, 3, generator=generator)
    classes = torch.randint(5, (2, 40), generator=generator)
    assert FEW_ROWS < 2 * 40
    alone = [by_class(x[:, [at]], classes[:, [at]], weight) for at in range(40)]
    torch.testing.assert_close(torch.cat(alone, 1), by_class(x, classes, weight))
    torch.testing.assert_close(by_class(x, classes, weight), torch.einsum("btd,btde->bte", x, weight[classes]))


def test_streams_may_be_of_different_widths():
    """As in a composite of several parts, whose earlier sites are in another part."""
    widths = {(1, 0): 4, (3, 0): 6}
    found = Routes(tuple(widths), OF, noise(CLASSES, 10, D_B), noise(CLASSES, D_B, seed=1), 1.0)
    seen = tokens(20, 0)
    seen.streams.update({stream: noise(20, width, seed=stream[0]) for stream, width in widths.items()})
    terms = [Term(Residual(*stream), noise(width, D_B, seed=8)) for stream, width in widths.items()]
    whole = routed("routed", Translation("base", tuple(terms), noise(D_B)), found)
    of = OF[seen.ids[:, 0]]
    by_class = [term for term in whole.terms if isinstance(term.input, Routed)]
    got = sum(torch.einsum("td,tde->te", seen.streams[term.input.site, 0], term.weight[of]) for term in by_class)
    expected = added(found, seen) + sum(
        seen.streams[stream] @ term.weight for stream, term in zip(widths, terms, strict=True)
    )
    assert torch.allclose(got + found.constant[of], expected, atol=1e-5)


def test_initial_centres_equal_those_of_scipy():
    rows = noise(3000, 5).double().numpy()
    for number in (1, 2, 20):
        options = dict(minit="++", rng=np.random.default_rng(number), iter=3)
        wanted, _ = kmeans2(rows, number, **options)  # pyright: ignore[reportArgumentType]
        found, _ = kmeans2(rows, initial_centres(rows, number, seed=number), minit="matrix", iter=3)
        assert np.array_equal(found, wanted)


def test_classes_depend_on_the_states_and_not_on_the_ids():
    states = noise(CLASSES, 8, seed=3)[OF] + 0.01 * noise(VOCABULARY, 8, seed=4)
    ids = torch.arange(VOCABULARY).repeat(3)
    found = classes_by_state(states, ids, CLASSES, 0)
    assert len(set(zip(OF.tolist(), found.tolist(), strict=True))) == CLASSES == len(found.unique())
    assert torch.equal(found, classes_by_state(states, ids, CLASSES, 0))
    assert not torch.equal(found, classes_at_random(VOCABULARY, CLASSES, 0))


@pytest.mark.parametrize(
    ("wanted", "columns", "memory", "expected"),
    [(None, 512, 2**32, 64), (None, 8192, 2**40, 4), (7, 512, 2**32, 7), (None, 512, 2**26, 2), (0, 512, 2**32, 0),
     (None, 8, 2**40, VOCABULARY)],
)  # fmt: skip
def test_the_number_of_matrices_is_limited_by_table_size_and_memory(wanted, columns, memory, expected):
    assert how_many(wanted, columns, VOCABULARY if columns == 8 else 10**6, memory, 512) == expected
