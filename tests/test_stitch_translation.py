import numpy as np
import pytest
import scipy.sparse as sp
import torch

from matching.null import random_rotation
from sae.types import Dictionary
from stitch.composite import translation_config, translation_tensors
from stitch.modeling_composite import TranslationModule
from stitch.translation import baselines, matched
from stitch.translation.matched import Matched
from stitch.translation.moments import Moments, accumulate
from stitch.translation.ridge import STRENGTHS, ridge
from stitch.translation.types import Codes, Term, Token, Translation

TOKENS, D_A, D_B, FEATURES = 600, 6, 8, 20


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def applied(translation: Translation, x: torch.Tensor, ids: torch.Tensor | None = None) -> torch.Tensor:
    """The translation through the module that ships with every checkpoint."""
    module = TranslationModule(translation_config(translation, 0, 3, x.shape[1]))
    module.load_state_dict(translation_tensors(translation, torch.float32))
    ids = torch.ones(1, len(x), dtype=torch.long) if ids is None else ids[None]
    with torch.no_grad():
        return module({3: x[None].float()}, ids, torch.arange(1, len(x) + 1)[None])[0]


def moments_of(x: torch.Tensor, y: torch.Tensor, chunk: int = 100) -> Moments:
    chunks = ({"x": part, "target": other} for part, other in zip(x.split(chunk), y.split(chunk), strict=True))
    return accumulate(chunks, [("x", "x"), ("x", "target")])


def test_moments_are_those_of_the_whole_matrix_however_it_is_cut():
    dense = torch.randn(TOKENS, 5, generator=generator()) + 100
    sparse = torch.relu(torch.randn(TOKENS, 7, generator=generator(1)) - 1)
    pairs = [("dense", "dense"), ("sparse", "dense"), ("sparse", "sparse")]
    for chunk in (37, 600):
        chunks = (
            {"dense": a, "sparse": sp.csr_array(b.numpy())}
            for a, b in zip(dense.split(chunk), sparse.split(chunk), strict=True)
        )
        found = accumulate(chunks, pairs)
        wide = {"dense": dense.double(), "sparse": sparse.double()}
        for first, second in pairs:
            assert torch.allclose(found.product(first, second), wide[first].T @ wide[second], rtol=1e-12)
        assert torch.allclose(found.product("dense", "sparse"), wide["dense"].T @ wide["sparse"], rtol=1e-12)
        both = np.concatenate([wide["dense"].numpy(), wide["sparse"].numpy()], 1)
        expected = torch.from_numpy(np.cov(both.T, bias=True))[:5, 5:]
        assert torch.allclose(found.covariance("dense", "sparse"), expected, atol=1e-9)
        assert torch.allclose(found.squares["sparse"], wide["sparse"].square().sum(0), rtol=1e-12)


def test_ridge_is_the_regularised_least_squares_solution():
    x = torch.randn(TOKENS, D_A, generator=generator(), dtype=torch.float64) * 3 + 5
    y = x @ torch.randn(D_A, D_B, generator=generator(1), dtype=torch.float64) + torch.randn(
        TOKENS, D_B, generator=generator(2), dtype=torch.float64
    )
    fit, held = moments_of(x[:400], y[:400]), moments_of(x[400:], y[400:])
    found = ridge(fit, held, ("x",))

    centred, target = x[:400] - x[:400].mean(0), y[:400] - y[:400].mean(0)
    penalty = found.strength * 400 * centred.var(0, unbiased=False).mean() * torch.eye(D_A, dtype=torch.float64)
    expected = torch.linalg.solve(centred.T @ centred + penalty, centred.T @ target)
    assert torch.allclose(found.weights["x"], expected, atol=1e-9)
    residual = y[400:] - x[400:] @ found.weights["x"] - found.bias
    unexplained = residual.square().mean(0).sum() / y[400:].var(0, unbiased=False).sum()
    assert found.unexplained == pytest.approx(float(unexplained), rel=1e-9)


def test_ridge_takes_the_strength_that_is_best_on_held_out_tokens():
    x = torch.randn(60, 40, generator=generator(), dtype=torch.float64)
    y = torch.randn(60, D_B, generator=generator(1), dtype=torch.float64)  # nothing to learn: the strongest is best
    held_x, held_y = torch.randn_like(x), torch.randn_like(y)
    assert ridge(moments_of(x, y), moments_of(held_x, held_y), ("x",)).strength == float(STRENGTHS[-1])
    weight = torch.randn(40, D_B, generator=generator(3), dtype=torch.float64)
    exact = ridge(moments_of(x, x @ weight), moments_of(held_x, held_x @ weight), ("x",))
    assert exact.strength == float(STRENGTHS[0]) and exact.unexplained < 1e-9


def test_ridge_gives_blocks_of_different_scale_the_same_chance():
    x = torch.randn(200, 3, generator=generator(), dtype=torch.float64)
    other = torch.randn(200, 3, generator=generator(1), dtype=torch.float64)
    y = x + other

    def fitted(scale: float):
        chunk = {"x": x, "embedding": other * scale, "target": y}
        names = [("x", "x"), ("x", "embedding"), ("embedding", "embedding"), ("x", "target"), ("embedding", "target")]
        moments = accumulate([chunk], names)
        return ridge(moments, moments, ("x", "embedding")).weights["embedding"] * scale

    assert torch.allclose(fitted(1.0), fitted(1e-3), atol=1e-9)


def rotated_pair(d_a: int, d_b: int):
    """Two dictionaries that differ by an isometry and a permutation of the features, their codes on the same tokens, and x, y."""
    rotation = random_rotation(d_a, d_b, generator(5))
    order = torch.randperm(FEATURES, generator=generator(6))
    directions = torch.nn.functional.normalize(torch.randn(FEATURES, d_a, generator=generator(7), dtype=torch.float64))
    shift = torch.randn(d_b, generator=generator(8), dtype=torch.float64)
    codes = torch.relu(torch.randn(TOKENS, FEATURES, generator=generator(9), dtype=torch.float64) - 0.5)

    def dictionary(rows: torch.Tensor) -> Dictionary:
        rows = rows.float()
        return Dictionary(
            rows.T.contiguous(), torch.zeros(FEATURES), "relu", None, None, rows, torch.zeros(rows.shape[1])
        )

    a, b = dictionary(directions), dictionary((directions @ rotation)[order])
    x = codes @ directions
    partners = order.argsort()
    found = Matched(
        rows=torch.arange(FEATURES),
        cols=partners,
        mass=torch.ones(FEATURES, dtype=torch.float64),
        similarity=torch.ones(FEATURES, dtype=torch.float64),
        co_moment=codes.square().mean(0),
        mean_a=codes.mean(0),
        second_a=codes.square().mean(0),
    )
    return a, b, found, x, x @ rotation + shift, codes


@pytest.mark.parametrize("d_a, d_b", [(6, 6), (6, 8)])
def test_translations_from_a_true_matching_restore_a_rotated_space(d_a: int, d_b: int):
    a, b, found, x, y, _ = rotated_pair(d_a, d_b)
    moments = moments_of(x, y)
    for fit in (matched.directions, matched.rotation):
        translation = fit("t", found, a, b, 3, moments)
        assert (applied(translation, x) - y).abs().max() < 2e-3
    assert (applied(baselines.procrustes(3, moments), x) - y).abs().max() < 1e-3


def test_a_wrong_matching_restores_nothing():
    a, b, found, x, y, _ = rotated_pair(6, 8)
    wrong = Matched(
        found.rows,
        found.cols.roll(1),
        *(getattr(found, name) for name in ("mass", "similarity", "co_moment", "mean_a", "second_a")),
    )
    error = (applied(matched.rotation("t", wrong, a, b, 3, moments_of(x, y)), x) - y).square().sum()
    assert error > 0.5 * (y - y.mean(0)).square().sum()


def test_a_permutation_sends_every_feature_to_its_partner():
    a, b, found, x, y, codes = rotated_pair(6, 8)
    translation = matched.permutation("t", found, a, b, 3, y.mean(0))
    z = a.encode(x.float()).double()
    expected = (z - codes.mean(0)) @ b.decoder.double()[found.cols] + y.mean(0)
    assert (applied(translation, x).double() - expected).abs().max() < 2e-3


def test_a_soft_matching_sends_a_feature_to_the_barycentre_of_its_partners():
    a, b, found, *_ = rotated_pair(6, 8)
    rows, cols = torch.tensor([0, 0, 3]), torch.tensor([2, 5, 1])
    mass, co_moment = torch.tensor([1.0, 3.0, 7.0]).double(), torch.tensor([2.0, 4.0, 6.0]).double()
    soft = Matched(
        rows, cols, mass, torch.ones(3).double(), co_moment, found.mean_a, torch.full((FEATURES,), 2.0).double()
    )
    images = matched.images(soft, a, b)
    assert images.features.tolist() == [0, 3]
    decoder = b.decoder.double()
    # shares 1/4 and 3/4; s = (2/4 + 4·3/4) / 2 = 1.75 and 6 / 2 = 3
    assert torch.allclose(images.target[0], 1.75 * (decoder[2] / 4 + decoder[5] * 3 / 4), rtol=1e-3)
    assert torch.allclose(images.target[1], 3.0 * decoder[1], rtol=1e-3)


def test_mean_shift_and_identity_do_what_they_say():
    x = torch.randn(50, D_A, generator=generator(), dtype=torch.float64)
    y = torch.randn(50, D_B, generator=generator(1), dtype=torch.float64) + 3
    shifted = applied(baselines.mean_shift(3, moments_of(x, y)), x)
    assert torch.allclose(shifted.mean(0).double(), y.mean(0), atol=1e-5)
    same = applied(baselines.identity(3, D_B), x)
    assert torch.equal(same[:, :D_A], x.float()) and (same[:, D_A:] == 0).all()
    assert torch.equal(applied(baselines.identity(3, 4), x), x[:, :4].float())


def test_lookups_cost_nothing_and_products_are_counted():
    a, *_ = rotated_pair(6, 8)
    table, weight = torch.zeros(50, 8), torch.zeros(FEATURES, 8)
    translation = Translation("t", (Term(Token(), table), Term(Codes(3, a), weight)), torch.zeros(8))
    assert translation.multiply_adds == 6 * FEATURES + FEATURES * 8
