from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from matching.procrustes import random_rotation
from matching.types import Alternatives, Candidates
from sae.types import Dictionary
from stitch.features.matched import Matched
from stitch.modeling.modeling_translation import TranslationModule
from stitch.regression import normal
from stitch.regression.moments import Moments, accumulate
from stitch.regression.ridge import STRENGTHS, ridge, shares
from stitch.regression.search import descend
from stitch.translation import baselines, cross_code, lifts, matched
from stitch.translation.module import translation_config, translation_tensors
from stitch.translation.types import Codes, Term, Token, Translation

pytestmark = pytest.mark.numeric

TOKENS, D_A, D_B, FEATURES = 600, 6, 8, 20


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def applied(translation: Translation, x: torch.Tensor, ids: torch.Tensor | None = None) -> torch.Tensor:
    """Applies the translation with the module that ships with every checkpoint."""
    module = TranslationModule(translation_config(translation, 0, 3, x.shape[1], 50))
    module.load_state_dict(translation_tensors(translation, torch.float32))
    ids = torch.ones(1, len(x), dtype=torch.long) if ids is None else ids[None]
    with torch.no_grad():
        return module({3: x[None].float()}, ids, torch.arange(1, len(x) + 1)[None])[0]


def moments_of(x: torch.Tensor, y: torch.Tensor, chunk: int = 100) -> Moments:
    chunks = ({"x": part, "target": other} for part, other in zip(x.split(chunk), y.split(chunk), strict=True))
    return accumulate(chunks, [("x", "x"), ("x", "target")])


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("lowest", range(0, 11, 2))
def test_the_search_finds_the_minimum_of_a_valley_and_evaluates_each_point_once(lowest, step):
    asked: list[int] = []

    def attempt(index: int) -> float:
        asked.append(index)
        return np.inf if index < lowest - 3 else abs(index - lowest) + 1.0  # below this no factorisation may exist

    assert descend(attempt, float, start=4, step=step, count=11) == 1.0
    assert len(asked) == len(set(asked)) <= abs(lowest - 4) // step + 3
    if step == 1:
        asked.clear()
        assert descend(attempt, float, start=lowest, step=1, count=11, best=1.0) == 1.0
        assert lowest not in asked


def test_moments_equal_those_of_the_whole_matrix_for_any_chunks():
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


def test_products_in_single_precision_are_close_and_only_the_requested_ones_are_made():
    dense = torch.randn(TOKENS, 5, generator=generator()) + 3
    codes = torch.relu(torch.randn(TOKENS, 7, generator=generator(1)))
    pairs = [("dense", "dense"), ("codes", "dense"), ("codes", "codes")]
    chunk = {"dense": dense, "codes": sp.csr_array(codes.numpy())}
    exact, near = accumulate([chunk], pairs), accumulate([chunk], pairs, {"codes"})
    assert torch.equal(near.product("dense", "dense"), exact.product("dense", "dense"))
    for first in ("dense", "codes"):
        got, wanted = near.product("codes", first), exact.product("codes", first)
        assert torch.allclose(got, wanted, rtol=1e-5) and not torch.equal(got, wanted)
        assert torch.equal(near.sums[first], exact.sums[first]) and torch.equal(
            near.squares[first], exact.squares[first]
        )


def test_normal_equations_are_solved_for_one_strength_after_another():
    x = torch.randn(TOKENS, 7, generator=generator(), dtype=torch.float64) + 2
    codes = torch.relu(torch.randn(TOKENS, 9, generator=generator(1), dtype=torch.float64))
    variables = {"x": x, "codes": codes, "target": x[:, :D_A]}
    moments = accumulate([variables], [("x", "x"), ("codes", "x"), ("codes", "codes"), ("x", "target")])
    scales = {"x": torch.tensor(3.0, dtype=torch.float64), "codes": torch.tensor(0.5, dtype=torch.float64)}
    equations = normal.NormalEquations(moments, ("x", "codes"), scales)
    gram = np.cov(torch.cat([x / 3, codes / 0.5], 1).numpy().T, bias=True)
    cross = torch.randn(16, D_B, generator=generator(2), dtype=torch.float64)
    for scale in (1e-3, 10.0, 1e-3, 0.1):
        strengths = scale * torch.rand(16, generator=generator(3), dtype=torch.float64)
        expected = np.linalg.solve(gram + np.diag(strengths), cross.numpy())
        assert np.allclose(equations.solve(cross, strengths), expected, rtol=1e-8)
    assert equations.solve(cross, torch.full((16,), -100.0, dtype=torch.float64)) is None


def test_an_overfitting_lift_gets_a_strength_of_its_own():
    """60 tokens and 40 columns of noise beside one informative input: a single λ would shrink the informative input
    too much.
    """
    x = torch.randn(TOKENS, D_A, generator=generator(), dtype=torch.float64)
    noise = torch.randn(TOKENS, 40, generator=generator(1), dtype=torch.float64)
    y = x @ torch.randn(D_A, D_B, generator=generator(2), dtype=torch.float64)
    y = y + 0.1 * torch.randn(y.shape, generator=generator(3), dtype=torch.float64)
    pairs = [(u, v) for u in ("x", "noise") for v in ("x", "noise", "target")]
    fit, held = (
        accumulate([{"x": x[part], "noise": noise[part], "target": y[part]}], pairs)
        for part in (slice(60), slice(60, None))
    )
    together, apart = ridge(fit, held, ("x", "noise")), ridge(fit, held, ("x", "noise"), apart="noise")
    assert together.strength_apart is None and apart.strength_apart is not None
    assert apart.strength_apart > 100 * apart.strength and apart.unexplained < 0.5 * together.unexplained
    assert ridge(fit, held, ("x",), apart="noise").strength_apart is None


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
    # nothing to learn, so the largest strength is best
    y = torch.randn(60, D_B, generator=generator(1), dtype=torch.float64)
    held_x, held_y = torch.randn_like(x), torch.randn_like(y)
    assert ridge(moments_of(x, y), moments_of(held_x, held_y), ("x",)).strength == float(STRENGTHS[-1])
    weight = torch.randn(40, D_B, generator=generator(3), dtype=torch.float64)
    exact = ridge(moments_of(x, x @ weight), moments_of(held_x, held_x @ weight), ("x",))
    assert exact.strength == float(STRENGTHS[0]) and exact.unexplained < 1e-9


def test_ridge_does_not_depend_on_the_scale_of_input_blocks():
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
    """Two dictionaries that differ by an isometry and a permutation of the features, their codes on the same tokens,
    x and y.
    """
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


def code_moments(a: Dictionary, x: torch.Tensor, y: torch.Tensor) -> Moments:
    codes = a.encode(x.float()).double()
    names = [(one, other) for one in ("x", "codes", "target") for other in ("x", "codes", "target")]
    return accumulate([{"x": x, "codes": codes, "target": y}], names)


def test_carrying_the_error_adds_the_best_map_of_what_the_codes_miss():
    """Half of the features lose their partner; the map of the error translates their part of x − x̂ to y."""
    a, b, found, x, y, _ = rotated_pair(6, 8)
    every_other = {name: getattr(found, name)[::2] for name in ("rows", "cols", "mass", "similarity", "co_moment")}
    half = replace(found, **every_other)
    coarse = Dictionary(**{**vars(a), "encoder_bias": torch.full((FEATURES,), -0.4)})  # codes that miss much of x
    start = matched.permutation("t", half, coarse, b, 3, y.mean(0))
    fit, held = code_moments(coarse, x[:400], y[:400]), code_moments(coarse, x[400:], y[400:])
    carried = matched.error_carry("t+error", start, fit, held)

    z = coarse.encode(x.float()).double()
    error = x - z @ coarse.decoder.double()
    left = y - applied(start, x).double()
    centred, wanted = error[:400] - error[:400].mean(0), left[:400] - left[:400].mean(0)
    expected = torch.linalg.lstsq(centred, wanted).solution
    best = left[400:] - (error[400:] - error[:400].mean(0)) @ expected - left[:400].mean(0)
    got = y[400:] - applied(carried, x[400:]).double()
    assert got.square().sum() < 1.02 * best.square().sum() < 0.5 * left[400:].square().sum()


def graph_of(codes_a: torch.Tensor, codes_b: torch.Tensor) -> Candidates:
    """A graph in which every pair is a candidate."""
    correlation = np.corrcoef(codes_a.numpy().T, codes_b.numpy().T)[: codes_a.shape[1], codes_a.shape[1] :]
    rows, cols = (index.flatten() for index in np.indices(correlation.shape))
    co_moment = (codes_a.T @ codes_b / len(codes_a)).numpy().flatten()
    none = Alternatives(np.zeros((codes_a.shape[1], 0), dtype=np.int64), np.zeros((codes_a.shape[1], 0)))
    return Candidates(correlation.shape, rows, cols, correlation.flatten(), co_moment, none)


def test_a_cross_code_undoes_a_split_that_no_permutation_can(monkeypatch):
    """B's features 2j and 2j+1 are mixtures of halves of A's features j and j+1, so no single partner explains them."""
    a, _, _, x, _, _ = rotated_pair(6, 8)
    codes_a = a.encode(x.float()).double()
    mixing = torch.zeros(FEATURES, FEATURES, dtype=torch.float64)
    for column in range(FEATURES):
        mixing[column, column], mixing[(column + 1) % FEATURES, column] = 0.7, 0.5
    codes_b = codes_a @ mixing
    decoder = torch.nn.functional.normalize(torch.randn(FEATURES, 8, generator=generator(3), dtype=torch.float64))
    b = Dictionary(torch.zeros(8, FEATURES), torch.zeros(FEATURES), "relu", None, None, decoder.float(), torch.zeros(8))
    y = codes_b @ b.decoder.double()
    fit, held = code_moments(a, x[:400], y[:400]), code_moments(a, x[400:], y[400:])
    graph, deviation = graph_of(codes_a[:400], codes_b[:400]), codes_b[:400].std(0, correction=0)
    found = cross_code.cross_code(graph, b, deviation, fit, held)
    assert found.width > 1 and found.unexplained < 0.01
    translated = applied(cross_code.translation("t", found, a, b, 3, fit), x[400:]).double()
    measured = (y[400:] - translated).square().mean(0).sum() / y[400:].var(0, correction=0).sum()
    assert measured == pytest.approx(found.unexplained, rel=0.02, abs=1e-5)

    monkeypatch.setattr(cross_code, "WIDTHS", (1,))
    single = cross_code.cross_code(graph, b, deviation, fit, held)
    assert ((single.weight != 0).sum(0) <= 1).all() and single.unexplained > 10 * found.unexplained


def test_all_edges_together_are_the_least_squares_solution_in_the_stream():
    """Directions overlap and every feature of B has two edges, so columns cannot be solved one by one."""
    x = torch.randn(TOKENS, D_A, generator=generator(), dtype=torch.float64)
    codes = torch.relu(x @ torch.randn(D_A, FEATURES, generator=generator(1), dtype=torch.float64))
    directions = torch.nn.functional.normalize(torch.randn(FEATURES, 8, generator=generator(2), dtype=torch.float64))
    y = torch.randn(TOKENS, 8, generator=generator(3), dtype=torch.float64) + codes[:, :8]
    start = torch.zeros(FEATURES, FEATURES, dtype=torch.float64)
    for column in range(FEATURES):
        start[[column, (column + 3) % FEATURES], column] = 1.0
    moments = accumulate(
        [{"codes": codes, "target": y}], [("codes", "codes"), ("codes", "target"), ("target", "target")]
    )
    found = cross_code.towards_stream(start, moments, directions)

    rows, cols = start.nonzero(as_tuple=True)
    centred = codes - codes.mean(0)
    written = torch.einsum("te,ed->tde", centred[:, rows], directions[cols]).flatten(0, 1) / TOKENS**0.5
    penalty = torch.diag(cross_code.RELATIVE_RIDGE * centred.square().mean(0)[rows])
    wanted = (y - y.mean(0)).flatten() / TOKENS**0.5
    expected = torch.linalg.solve(written.T @ written + penalty, written.T @ wanted)
    assert torch.allclose(found[rows, cols], expected, atol=1e-3 * float(expected.abs().max()))
    assert torch.equal(found != 0, start != 0)


def test_a_prior_decides_without_data_and_vanishes_with_much_data():
    x = torch.randn(4000, D_A, generator=generator(), dtype=torch.float64)
    true = torch.randn(D_A, D_B, generator=generator(1), dtype=torch.float64)
    y = x @ true + torch.randn(4000, D_B, generator=generator(2), dtype=torch.float64)
    near = true + 0.01 * torch.randn(D_A, D_B, generator=generator(3), dtype=torch.float64)
    held = moments_of(x[3000:], y[3000:])
    few = moments_of(x[:8], y[:8])
    assert ridge(few, held, ("x",), prior={"x": near}).unexplained < 0.9 * ridge(few, held, ("x",)).unexplained
    assert torch.allclose(ridge(few, held, ("x",), prior={"x": near}).weights["x"], near, atol=1e-3)
    many = moments_of(x[:3000], y[:3000])
    wrong = -true
    assert torch.allclose(ridge(many, held, ("x",), prior={"x": wrong}).weights["x"], true, atol=0.1)


@pytest.mark.parametrize("make", ["random_relu", "random_topk", "exemplars"])
def test_untrained_lifts_have_the_requested_width_and_sparsity(make: str):
    sample = torch.randn(3000, D_A, generator=generator()) * torch.tensor([9.0, 3, 1, 1, 1, 0.1]) + 5
    sizes = {"features": 40, "generator": generator(1)} | ({} if make == "random_relu" else {"k": 7})
    lift = getattr(lifts, make)(sample, **sizes)
    active = (lift.encode(sample) > 0).double()
    assert lift.encoder.shape == (D_A, 40)
    if make == "random_relu":
        assert active.mean(0).min() > 0.15 and active.mean(0).max() < 0.85
    else:
        assert active.sum(1).max() <= 7 and active.sum(1).mean() > 5
    if make == "exemplars":
        nearest = (sample - sample.mean(0)) @ (lift.encoder / lift.encoder.norm(dim=0))
        cosine = nearest / (sample - sample.mean(0)).norm(dim=1, keepdim=True)
        assert torch.allclose(cosine.max(0).values, torch.ones(40), atol=1e-4)  # each direction is a token's


def test_rbf_features_are_gaussian_bumps_around_tokens():
    sample = torch.randn(500, D_A, generator=generator()) * torch.tensor([9.0, 3, 1, 1, 1, 0.1]) + 5
    lift = lifts.rbf(sample, 40, generator(1))
    centres = sample[torch.randperm(500, generator=generator(1))[:40]]
    distances = torch.cdist(sample.double(), centres.double()).square()
    variance = sample.double().var(0, correction=0).sum()
    assert torch.allclose(lift.encode(sample).double(), torch.exp(-distances / (2 * variance)), atol=1e-4)


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


def test_mean_shift_and_identity_follow_their_definitions():
    x = torch.randn(50, D_A, generator=generator(), dtype=torch.float64)
    y = torch.randn(50, D_B, generator=generator(1), dtype=torch.float64) + 3
    shifted = applied(baselines.mean_shift(3, moments_of(x, y)), x)
    assert torch.allclose(shifted.mean(0).double(), y.mean(0), atol=1e-5)
    same = applied(baselines.identity(3, D_B), x)
    assert torch.equal(same[:, :D_A], x.float()) and (same[:, D_A:] == 0).all()
    assert torch.equal(applied(baselines.identity(3, 4), x), x[:, :4].float())


def test_look_ups_cost_no_products_and_products_are_counted():
    a, *_ = rotated_pair(6, 8)
    table, weight = torch.zeros(50, 8), torch.zeros(FEATURES, 8)
    translation = Translation("t", (Term(Token(), table), Term(Codes(3, a), weight)), torch.zeros(8))
    assert translation.multiply_adds == 6 * FEATURES + FEATURES * 8
    assert translation.parameters == 8 + 50 * 8 + 6 * FEATURES + FEATURES + FEATURES * 8


def test_shares_are_the_contributions_of_inputs_to_the_variance():
    x = torch.randn(2000, 3, generator=generator(), dtype=torch.float64)
    other = torch.randn(2000, 3, generator=generator(1), dtype=torch.float64)
    chunk = {"x": x, "embedding": other, "target": 3 * x + other}
    names = [("x", "x"), ("x", "embedding"), ("embedding", "embedding"), ("x", "target"), ("embedding", "target")]
    moments = accumulate([chunk], names)
    found = shares(ridge(moments, moments, ("x", "embedding")), moments)
    assert found["x"] == pytest.approx(0.9, abs=0.02) and sum(found.values()) == pytest.approx(1)
