"""The untrained SAE: random directions, all other parameters as good as possible."""

from dataclasses import replace

import pytest
import torch

from sae.config import ARCHITECTURES, SAEConfig
from sae.errors import SAEError
from sae.metrics import measure
from sae.null import untrained

CONFIG = SAEConfig(features=48, k=5)


def _sample(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(400, 8, generator=generator) @ torch.randn(8, 8, generator=generator) + 3


def _null(architecture, sample):
    return untrained(replace(CONFIG, architecture=architecture), sample, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_has_the_requested_architecture_and_sparsity(architecture):
    sample = _sample()
    null = _null(architecture, sample)
    expected = {"standard": "relu", "topk": "topk"}.get(architecture, "jumprelu")
    assert (null.activation, null.encoder.shape) == (expected, (8, 48))
    assert abs(measure(null, [sample]).l0 - CONFIG.k) < 0.02


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_its_directions_are_random_unit_rows_equal_in_encoder_and_decoder(architecture):
    null = _null(architecture, _sample())
    torch.testing.assert_close(null.decoder.norm(dim=1), torch.ones(48))
    cosines = torch.nn.functional.cosine_similarity(null.encoder.T, null.decoder)
    torch.testing.assert_close(cosines, torch.ones(48))
    # the directions do not depend on the data
    assert torch.equal(null.decoder, _null(architecture, _sample(seed=2)).decoder)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_other_gain_reconstructs_better(architecture):
    sample = _sample()
    null = _null(architecture, sample)

    def error(gain):
        return (null.decode(null.encode(sample) * gain) - sample).square().sum()

    assert error(1.0) < error(0.98) and error(1.0) < error(1.02)
    assert measure(null, [sample]).fvu < 1


def test_unusable_samples_are_refused():
    generator = torch.Generator()
    for sample, message in [
        (torch.empty(0, 8), "non-empty sample of finite activations; got 0 tokens"),
        (torch.full((5, 8), float("nan")), "finite"),
        (torch.ones(5, 8), "activations that vary"),
    ]:
        with pytest.raises(SAEError, match=message):
            untrained(CONFIG, sample, generator)
