"""Configs are checked when created."""

import math
from dataclasses import asdict

import pytest

from sae.config import SAEConfig
from sae.errors import SAEError


def test_the_default_rate_follows_the_scaling_law():
    assert SAEConfig(features=16384).learning_rate == 2e-4
    assert math.isclose(SAEConfig(features=4096).learning_rate, 4e-4)
    assert SAEConfig(features=4096, lr=1e-3).learning_rate == 1e-3


def test_a_config_is_restored_from_its_dict():
    config = SAEConfig(architecture="topk", features=64, k=3, lr=1e-3, seed=5)
    assert SAEConfig.from_dict(asdict(config)) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "vae"}, "architecture must be one of batchtopk, .*got 'vae'"),
        ({"features": 0}, "features must be a whole number of at least 1; got 0"),
        ({"k": 65}, "k must be at most features = 64; got 65"),
        ({"steps": 0}, "steps must be"),
        ({"batch_size": -1}, "batch_size must be"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"lr": math.nan}, "lr must be positive"),
        ({"auxiliary": -1.0}, "auxiliary must be zero or more"),
        ({"warmup": 0.6, "decay": 0.5}, "together at most 1; got 0.6 and 0.5"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(SAEError, match=message):
        SAEConfig(**({"features": 64} | settings))


def test_unknown_keys_are_refused():
    with pytest.raises(SAEError, match="unknown key 'depth'"):
        SAEConfig.from_dict({"features": 64, "depth": 2})
    with pytest.raises(SAEError, match="features is missing"):
        SAEConfig.from_dict({})
