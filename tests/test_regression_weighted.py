"""Weighted ridge regression, against least squares on repeated rows."""

import pytest
import torch

import tiny
from stitch.regression.weighted import weighted_ridge

pytestmark = pytest.mark.numeric


def test_weights_count_rows_as_often_and_ridge_shrinks():
    columns, goal = tiny.noise(30, 4).double(), tiny.noise(30, 2, seed=1).double()
    weights = torch.randint(1, 4, (30,), generator=torch.Generator().manual_seed(2))
    repeated = [part.repeat_interleave(weights, 0) for part in (columns, goal)]
    wanted = torch.linalg.lstsq(*repeated).solution
    assert torch.allclose(weighted_ridge(columns, goal, 0.0, weights.double()), wanted)
    assert not torch.allclose(weighted_ridge(columns, goal, 0.0), wanted, rtol=0.01)
    penalty = (0.1 * repeated[0].square().sum(0).mean()).sqrt() * torch.eye(4, dtype=torch.float64)
    extended = torch.cat([repeated[0], penalty]), torch.cat([repeated[1], torch.zeros(4, 2, dtype=torch.float64)])
    assert torch.allclose(weighted_ridge(columns, goal, 0.1, weights.double()), torch.linalg.lstsq(*extended).solution)
