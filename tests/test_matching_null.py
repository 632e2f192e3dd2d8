"""A null differs from the real matching in its correspondence and in nothing else."""

import numpy as np
import pytest
import torch

from codes import planted, random_codes, stream_of
from matching.errors import MatchError
from matching.null import draw_columns, misaligned, shuffled
from matching.procrustes import random_rotation
from matching.statistics import correlation_matrix, feature_moments
from matching.types import Pairs


def some_pairs(count: int) -> tuple[Pairs, np.ndarray]:
    generator = np.random.default_rng(count)
    cols = generator.permutation(3 * count)[:count]
    scores = generator.random((2, count))
    return Pairs(np.arange(count) * 2, cols, scores[0], scores[1]), generator.random(3 * count)


@pytest.mark.parametrize("count", [2, 3, 19, 200])
def test_a_shuffled_matching_moves_every_partner_within_its_stratum(count: int):
    pairs, frequency = some_pairs(count)
    null = shuffled(pairs, frequency, np.random.default_rng(0), strata=10)
    assert sorted(null.cols) == sorted(pairs.cols)
    assert (null.cols != pairs.cols).all()
    np.testing.assert_array_equal(null.rows, pairs.rows)
    strata = min(10, count // 2)
    rank = np.argsort(np.argsort(frequency[pairs.cols]))
    edges = np.cumsum([len(part) for part in np.array_split(np.arange(count), strata)])
    before = dict(zip(pairs.cols, np.searchsorted(edges, rank, side="right"), strict=True))
    assert all(before[old] == before[new] for old, new in zip(pairs.cols, null.cols, strict=True))


def test_shuffling_depends_on_the_generator_alone():
    pairs, frequency = some_pairs(50)
    draws = [shuffled(pairs, frequency, np.random.default_rng(seed)).cols.tolist() for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


def test_one_pair_cannot_be_shuffled():
    pairs, frequency = some_pairs(1)
    with pytest.raises(MatchError, match="at least 2 pairs; got 1"):
        shuffled(pairs, frequency, np.random.default_rng(0))


def test_drawn_columns_are_distinct_live_and_uniform():
    live = np.array([1, 4, 5, 9, 11, 12])
    drawn = draw_columns(30_000, live, 3, np.random.default_rng(0))
    assert drawn.shape == (30_000, 3)
    assert all(len(set(row)) == 3 for row in drawn[:500].tolist())
    found, counts = np.unique(drawn, return_counts=True)
    np.testing.assert_array_equal(found, live)
    assert np.abs(counts / 15_000 - 1).max() < 0.04  # standard error 0.006


def test_if_fewer_columns_are_live_than_drawn_all_are_taken():
    drawn = draw_columns(4, np.array([2, 7]), 16, np.random.default_rng(0))
    np.testing.assert_array_equal(np.sort(drawn, axis=1), [[2, 7]] * 4)


def test_misaligned_codes_keep_their_moments_and_lose_their_partners():
    a, b, partner = planted(3000, 20, 0, noise=0.1)
    batches = stream_of(a, b)
    moved = misaligned(batches, seed=1)
    moments, moved_moments = feature_moments(batches), feature_moments(moved)
    for old, new in zip(moments, moved_moments, strict=True):
        np.testing.assert_allclose(old.variance, new.variance, rtol=1e-12)
        np.testing.assert_array_equal(old.firings, new.firings)
    rows = np.arange(20)
    assert correlation_matrix(batches, *moments)[rows, partner].min() > 0.7
    assert np.abs(correlation_matrix(moved, *moments)[rows, partner]).max() < 0.15
    first, second = (correlation_matrix(moved, *moments) for _ in range(2))
    assert first.tobytes() == second.tobytes()


def test_batches_too_short_to_misalign_are_refused():
    codes = random_codes(9, 3, 0)
    with pytest.raises(MatchError, match="at least 4 tokens; got 1"):
        feature_moments(misaligned(stream_of(codes, codes, batch=8), seed=0))


@pytest.mark.parametrize(("d_a", "d_b"), [(6, 6), (4, 9), (9, 4)])
def test_a_random_rotation_is_orthonormal_along_the_narrower_side(d_a: int, d_b: int):
    matrix = random_rotation(d_a, d_b, torch.Generator().manual_seed(0))
    assert matrix.shape == (d_a, d_b)
    gram = matrix @ matrix.T if d_a <= d_b else matrix.T @ matrix
    torch.testing.assert_close(gram, torch.eye(min(d_a, d_b), dtype=torch.float64), atol=1e-13, rtol=0)
    assert torch.equal(matrix, random_rotation(d_a, d_b, torch.Generator().manual_seed(0)))


def test_random_rotations_are_uniform():
    # Haar measure in the plane: the angle is uniform and half of all maps are reflections. Plain QR violates both.
    generator = torch.Generator().manual_seed(1)
    maps = torch.stack([random_rotation(2, 2, generator) for _ in range(4000)])
    quarter = torch.atan2(maps[:, 0, 1], maps[:, 0, 0]).div(torch.pi / 2).floor().long()
    assert (torch.bincount(quarter + 2, minlength=4).double() / 1000 - 1).abs().max() < 0.15
    assert abs(float((torch.linalg.det(maps) > 0).double().mean()) - 0.5) < 0.04
