"""Against planted rotations and isometries, and scipy's solver."""

import pytest
import torch
from scipy.linalg import orthogonal_procrustes

from matching.errors import MatchError
from matching.procrustes import orthogonal_map, random_rotation

pytestmark = pytest.mark.numeric


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("d_a", "d_b"), [(8, 8), (5, 12)])
def test_a_planted_rotation_or_isometry_and_its_scale_are_recovered(d_a: int, d_b: int):
    planted = random_rotation(d_a, d_b, torch.Generator().manual_seed(1))
    source = gaussian(40, d_a)
    found = orthogonal_map(source, 2.5 * source @ planted, torch.rand(40, generator=torch.Generator().manual_seed(2)))
    torch.testing.assert_close(found.matrix, planted, atol=1e-12, rtol=0)
    assert found.scale == pytest.approx(2.5, abs=1e-12)


def test_into_a_narrower_space_the_planted_projection_is_recovered_from_white_directions():
    planted = random_rotation(12, 5, torch.Generator().manual_seed(3))
    source = torch.linalg.qr(gaussian(12, 12)).Q  # white: otherwise alignment and least squares differ
    found = orthogonal_map(source, source @ planted, torch.ones(12))
    torch.testing.assert_close(found.matrix, planted, atol=1e-12, rtol=0)
    assert found.scale == pytest.approx(1.0)


def test_it_agrees_with_scipy_on_noisy_pairs():
    source, target = gaussian(30, 6, seed=4), gaussian(30, 6, seed=5)
    found = orthogonal_map(source, target, torch.ones(30))
    want, trace = orthogonal_procrustes(source.numpy(), target.numpy())
    torch.testing.assert_close(found.matrix, torch.from_numpy(want), atol=1e-12, rtol=0)
    assert found.scale == pytest.approx(trace / float(source.square().sum()))


def test_an_integer_weight_equals_repeating_the_pair():
    source, target = gaussian(10, 4, seed=6), gaussian(10, 4, seed=7)
    repeats = torch.tensor([1, 2, 3, 1, 1, 0, 4, 1, 1, 2])
    weighted = orthogonal_map(source, target, repeats.double())
    again = repeats.repeat_interleave(repeats.new_ones(10)).new_tensor(
        [index for index, count in enumerate(repeats.tolist()) for _ in range(count)]
    )
    repeated = orthogonal_map(source[again], target[again], torch.ones(len(again)))
    torch.testing.assert_close(weighted.matrix, repeated.matrix, atol=1e-12, rtol=0)
    assert weighted.scale == pytest.approx(repeated.scale)


@pytest.mark.parametrize(("d_a", "d_b"), [(4, 4), (3, 6), (6, 3)])
def test_small_rotations_of_the_solution_are_worse(d_a: int, d_b: int):
    source, target = gaussian(25, d_a, seed=8), gaussian(25, d_b, seed=9)
    weights = torch.rand(25, generator=torch.Generator().manual_seed(10), dtype=torch.float64)
    found = orthogonal_map(source, target, weights).matrix

    def alignment(matrix: torch.Tensor) -> float:
        return float((weights[:, None] * (source @ matrix) * target).sum())

    for seed in range(20):
        turn = gaussian(d_b, d_b, seed=20 + seed)
        turned = found @ torch.matrix_exp(0.1 * (turn - turn.T))
        assert alignment(turned) < alignment(found)


def test_float32_directions_are_solved_in_float64():
    planted = random_rotation(6, 6, torch.Generator().manual_seed(11))
    source = gaussian(50, 6, seed=12).float()
    found = orthogonal_map(source, (source.double() @ planted).float(), torch.ones(50))
    assert found.matrix.dtype == torch.float64
    identity = torch.eye(6, dtype=torch.float64)
    torch.testing.assert_close(found.matrix @ found.matrix.T, identity, atol=1e-13, rtol=0)


@pytest.mark.parametrize(("d_a", "d_b", "pairs"), [(6, 6, 5), (4, 9, 3), (9, 4, 3), (6, 6, 0)])
def test_too_few_pairs_are_refused(d_a: int, d_b: int, pairs: int):
    with pytest.raises(MatchError, match=f"needs {min(d_a, d_b)} independent pairs; got {pairs} pairs of rank {pairs}"):
        orthogonal_map(gaussian(pairs, d_a), gaussian(pairs, d_b, seed=1), torch.ones(pairs))


def test_repeated_and_weightless_pairs_do_not_count():
    source, target = gaussian(3, 4).repeat(5, 1), gaussian(3, 4, seed=1).repeat(5, 1)
    with pytest.raises(MatchError, match="got 15 pairs of rank 3"):
        orthogonal_map(source, target, torch.ones(15))
    with pytest.raises(MatchError, match="rank 0"):
        orthogonal_map(gaussian(9, 4), gaussian(9, 4, seed=1), torch.zeros(9))


def test_non_finite_or_negative_input_is_refused():
    source, target = gaussian(9, 4), gaussian(9, 4, seed=1)
    broken = source.clone()
    broken[0, 0] = float("nan")
    for arguments in ((broken, target, torch.ones(9)), (source, target, -torch.ones(9))):
        with pytest.raises(MatchError, match="finite directions"):
            orthogonal_map(*arguments)
