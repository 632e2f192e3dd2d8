"""Against invariances, closed cases, and the definition on raw activations."""

import pytest
import torch

from matching.errors import MatchError
from matching.measures import linear_cka, mean_max_cosine, pair_cosines, svcca
from matching.procrustes import random_rotation


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariances(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x, y = x - x.mean(0), y - y.mean(0)
    return x.T @ x / len(x), y.T @ y / len(x), x.T @ y / len(x)


def test_rotated_directions_match_after_the_rotation_is_undone():
    source = gaussian(30, 8)
    rotation = random_rotation(8, 8, torch.Generator().manual_seed(1))
    target = 3 * (source @ rotation).flip(0)
    assert mean_max_cosine(source @ rotation, target) == pytest.approx(1.0)
    assert mean_max_cosine(source, target) < 0.95
    torch.testing.assert_close(pair_cosines(source @ rotation, target.flip(0)), torch.ones(30, dtype=torch.float64))


def test_mean_max_cosine_follows_its_definition_in_any_chunks(monkeypatch: pytest.MonkeyPatch):
    source, target = gaussian(23, 5, seed=2), gaussian(17, 5, seed=3)
    want = torch.nn.functional.cosine_similarity(source[:, None], target[None], dim=2).max(dim=1).values.mean()
    for chunk in (1, 17 * 4, 2**24):
        monkeypatch.setattr("matching.measures._CHUNK", chunk)
        assert mean_max_cosine(source, target) == pytest.approx(float(want), abs=1e-12)


def test_cka_follows_its_definition_on_kernels():
    x = gaussian(200, 6, seed=4)
    y = x @ gaussian(6, 4, seed=5) + gaussian(200, 4, seed=6)
    centred_x, centred_y = x - x.mean(0), y - y.mean(0)
    kernel_x, kernel_y = centred_x @ centred_x.T, centred_y @ centred_y.T
    want = (kernel_x * kernel_y).sum() / (kernel_x.norm() * kernel_y.norm())
    assert linear_cka(*covariances(x, y)) == pytest.approx(float(want), abs=1e-12)


def test_cka_is_invariant_to_rotation_and_scale_and_svcca_to_any_linear_map():
    x = gaussian(500, 6, seed=7)
    rotated = 3 * x @ random_rotation(6, 9, torch.Generator().manual_seed(8)) + 1
    assert linear_cka(*covariances(x, rotated)) == pytest.approx(1.0)
    sheared = x @ (torch.eye(6, dtype=torch.float64) + 0.3 * gaussian(6, 6, seed=9))
    assert svcca(*covariances(x, sheared), explained=1.0) == pytest.approx(1.0)
    assert linear_cka(*covariances(x, sheared)) < 0.99


def test_unrelated_activations_score_low():
    parts = covariances(gaussian(5000, 6, seed=10), gaussian(5000, 6, seed=11))
    assert linear_cka(*parts) < 0.01
    assert svcca(*parts) < 0.05


def test_svcca_ignores_directions_with_negligible_variance():
    shared = gaussian(5000, 3, seed=12)
    x = torch.cat([shared, 1e-3 * gaussian(5000, 5, seed=13)], dim=1)
    y = torch.cat([shared, 1e-3 * gaussian(5000, 5, seed=14)], dim=1)
    assert svcca(*covariances(x, y), explained=0.99) == pytest.approx(1.0, abs=1e-4)
    assert svcca(*covariances(x, y), explained=1.0) < 0.5


def test_constant_activations_are_refused():
    parts = covariances(torch.ones(50, 3, dtype=torch.float64), gaussian(50, 3))
    for measure in (linear_cka, svcca):
        with pytest.raises(MatchError, match="zero variance"):
            measure(*parts)
