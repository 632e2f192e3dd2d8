"""Lifts whose products do not fit in memory: sparse rows instead of the matrix, and ridge by conjugate gradients."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import Tensor

from stitch.regression import conjugate, sparse_gram
from stitch.regression.conjugate import ConjugateGradients
from stitch.regression.moments import Moments, accumulate
from stitch.regression.normal import NormalEquations
from stitch.regression.ridge import ridge
from stitch.regression.sparse_gram import SparseGram
from stitch.translation.groups import OF_PRODUCT, Sizes, groups, needed
from stitch.translation.inputs import Lift, Stream
from stitch.translation.lifts import random_relu, random_topk
from tiny import noise

pytestmark = pytest.mark.numeric

TOKENS, D_A, D_B, FEATURES = 900, 6, 5, 40


def codes(tokens: int = TOKENS, seed: int = 0) -> Tensor:
    """Sparse codes of features with very different firing rates."""
    rate = torch.linspace(-2.5, 0.5, FEATURES)
    return torch.relu(noise(tokens, FEATURES, seed=seed) + rate) * 3


def variables(seed: int = 0) -> dict:
    x, z = noise(TOKENS, D_A, seed=seed + 10) * torch.logspace(-1, 2, D_A) + 5, codes(seed=seed)
    target = x @ noise(D_A, D_B, seed=1) * 0.01 + z @ noise(FEATURES, D_B, seed=2) + noise(TOKENS, D_B, seed=seed + 3)
    return {"x": x, "codes": sp.csr_array(z.numpy()), "target": target}


def moments(seed: int, implicit: tuple[str, ...] = (), chunk: int = 70) -> Moments:
    whole = variables(seed)
    parts = ({name: value[first : first + chunk] for name, value in whole.items()} for first in range(0, TOKENS, chunk))
    return accumulate(parts, needed(("x", "codes")), {"codes"}, implicit=implicit)


@pytest.mark.parametrize("block", [64, 100, 10**6])
def test_products_with_a_matrix_equal_those_of_the_explicit_matrix(block, monkeypatch):
    monkeypatch.setattr(sparse_gram, "BLOCK", block)
    z, gram, matrix = codes(), SparseGram(FEATURES), noise(FEATURES, 3, seed=5)
    for part in z.split(37):
        gram.add(sp.csr_array(part.numpy()))
    assert torch.allclose(gram @ matrix, z.T @ (z @ matrix), rtol=1e-4, atol=1e-2)
    gram.add(sp.csr_array(z.numpy()))  # rows can be appended
    assert torch.allclose(gram @ matrix, 2 * z.T @ (z @ matrix), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("inputs", [("x", "codes"), ("codes", "x")])
def test_conjugate_gradients_agree_with_a_factorisation_for_all_strengths(inputs, monkeypatch):
    monkeypatch.setattr(conjugate, "PRECISION", 1e-6)
    exact, kept = moments(0), moments(0, ("codes",))
    scales = {name: torch.tensor(scale, dtype=torch.float64) for name, scale in {"x": 50.0, "codes": 2.0}.items()}
    total = D_A + FEATURES
    direct, iterated = (
        kind(found, inputs, scales) for kind, found in ((NormalEquations, exact), (ConjugateGradients, kept))
    )
    cross = noise(total, D_B, seed=7).double()
    for scale in (1.0, 1e-2, 10.0):
        strengths = scale * (0.1 + torch.rand(total, generator=torch.Generator().manual_seed(3), dtype=torch.float64))
        expected, found = direct.solve(cross, strengths), iterated.solve(cross, strengths)
        assert expected is not None and found is not None
        assert torch.allclose(found, expected, atol=1e-3 * float(expected.abs().max()))


def test_ridge_on_rows_equals_ridge_on_products():
    exact, iterated = (
        ridge(moments(0, kept), moments(1, kept), ("x", "codes"), apart="codes") for kept in ((), ("codes",))
    )
    assert 0 < exact.unexplained < 0.5
    assert iterated.unexplained == pytest.approx(exact.unexplained, rel=5e-4)
    assert (iterated.strength, iterated.strength_apart) == (exact.strength, exact.strength_apart)


def test_codes_are_kept_if_their_products_are_too_large_and_they_are_sparse():
    sample = noise(200, D_A)
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "x": Stream(3),
        "sparse": Lift(3, random_topk(sample, 64, 4, generator)),
        "dense": Lift(3, random_relu(sample, 64, generator)),
        "narrow": Lift(3, random_relu(sample, 50, generator)),
    }
    rows = {"x": sample, "target": sample, "dense": noise(200, 64), "narrow": noise(200, 50)}
    rows["sparse"] = sp.csr_array(np.repeat(np.eye(1, 64, dtype=np.float32), 200, 0))  # one active feature per token
    budget = OF_PRODUCT * 64**2 - 1
    sizes = Sizes.of(inputs, rows, budget)
    assert (sizes.implicit, sizes.impossible) == ({"sparse"}, {"dense"})
    assert sizes.bytes_of([("sparse", "sparse")], tokens=1000) == sparse_gram.BYTES * 1000
    assert sizes.bytes_of([("narrow", "narrow"), ("narrow", "x")], tokens=1000) == OF_PRODUCT * 50 * (50 + D_A)
    wanted = {"one": ("x", "sparse"), "two": ("x", "narrow"), "three": ("x",)}
    found = groups(wanted, {("x", "x")}, sizes, tokens=100)
    assert [names for names, _ in found] == [["one"], ["two", "three"]]
    assert all(sizes.bytes_of(pairs, 100) <= budget or len(names) == 1 for names, pairs in found)
