"""Streamed metrics against formulas in numpy."""

import numpy as np
import pytest
import torch

from sae.errors import SAEError
from sae.metrics import measure
from sae.types import Dictionary

pytestmark = pytest.mark.numeric

D, FEATURES = 6, 20


def _dictionary(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    decoder = torch.randn(FEATURES, D, generator=generator, dtype=dtype)
    decoder /= decoder.norm(dim=1, keepdim=True)
    bias = torch.full((FEATURES,), -0.5, dtype=dtype)
    bias[:3] = -1e6  # three dead features
    return Dictionary(
        encoder=0.4 * decoder.T.contiguous(),
        encoder_bias=bias,
        activation="jumprelu",
        threshold=torch.full((FEATURES,), 0.1, dtype=dtype),
        k=None,
        decoder=decoder,
        decoder_bias=torch.randn(D, generator=generator, dtype=dtype),
    )


def _activations(tokens=500, offset=0.0):
    x = torch.randn(tokens, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 + offset
    x[:, 4] = 3.0  # a constant dimension
    return x


def test_metrics_equal_the_formulas():
    dictionary, x = _dictionary(), _activations()
    got = measure(dictionary, x.split(70))

    a, encoder, decoder = x.numpy(), dictionary.encoder.numpy(), dictionary.decoder.numpy()
    pre = a @ encoder + dictionary.encoder_bias.numpy()
    codes = np.where(pre > 0.1, pre, 0)
    error = (a - codes @ decoder - dictionary.decoder_bias.numpy()) ** 2
    spread = (a - a.mean(axis=0)) ** 2
    varying = spread.sum(axis=0) > 1e-9
    assert got.tokens == 500
    assert np.isclose(got.fvu, error.sum() / spread.sum(), rtol=1e-12)
    assert np.isclose(got.r2, np.mean(1 - error.sum(axis=0)[varying] / spread.sum(axis=0)[varying]), rtol=1e-12)
    assert got.l0 == (codes != 0).sum(axis=1).mean()
    assert np.isclose(got.dead, (~(codes != 0).any(axis=0)).mean()) and got.dead >= 3 / FEATURES


def test_metrics_do_not_depend_on_how_the_stream_is_cut():
    dictionary, x = _dictionary(), _activations()
    whole, cut = measure(dictionary, [x]), measure(dictionary, [x[:0], *x.split(33)])
    assert np.isclose(whole.fvu, cut.fvu, rtol=1e-12) and np.isclose(whole.r2, cut.r2, rtol=1e-12)
    assert (whole.l0, whole.dead, whole.tokens) == (cut.l0, cut.dead, cut.tokens)


def test_a_mean_far_larger_than_the_spread_costs_no_precision():
    """x̂ = mean by construction: FVU is 1 exactly, whatever the mean."""
    x = _activations(offset=1e7)
    silent = _dictionary()
    silent = Dictionary(**{**vars(silent), "encoder_bias": silent.encoder_bias - 1e12, "decoder_bias": x.mean(dim=0)})
    got = measure(silent, x.split(70))
    assert np.isclose(got.fvu, 1, rtol=1e-9) and got.l0 == 0 and got.dead == 1


def test_unmeasurable_streams_are_refused():
    with pytest.raises(SAEError, match="the stream was empty"):
        measure(_dictionary(), [])
    with pytest.raises(SAEError, match="must have the SAE's width 6; got 5"):
        measure(_dictionary(), [torch.zeros(4, 5)])
    with pytest.raises(SAEError, match="must be finite and vary"):
        measure(_dictionary(), [torch.full((4, D), float("nan"))])
    with pytest.raises(SAEError, match="must be finite and vary"):
        measure(_dictionary(), [torch.ones(4, D)])
