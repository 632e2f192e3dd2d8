import numpy as np
import pytest
import torch

from sae.types import Dictionary
from stitch.features.codes import sparse_codes

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize(
    ("activation", "threshold", "k"),
    [("relu", None, None), ("jumprelu", 2.0, None), ("topk", None, 3), ("rbf", 0.5, None)],
)
def test_sparse_codes_are_those_of_the_dictionary(activation: str, threshold: float | None, k: int | None):
    generator = torch.Generator().manual_seed(0)
    encoder, x = torch.randn(6, 20, generator=generator), torch.randn(50, 6, generator=generator)
    x[7] = 0.0  # a token without an active feature, if the activation allows it
    dictionary = Dictionary(
        encoder=encoder,
        encoder_bias=torch.full((20,), -0.1),
        activation=activation,  # pyright: ignore[reportArgumentType]
        threshold=None if threshold is None else torch.full((20,), threshold),
        k=k,
        decoder=encoder.T.contiguous(),
        decoder_bias=torch.zeros(6),
    )
    pre = (x @ encoder - 0.1).numpy()
    wanted = {
        "relu": pre * (pre > 0),
        "jumprelu": pre * (pre > 2.0),
        "topk": pre * (pre > 0) * (pre >= np.sort(pre, 1)[:, -3:-2]),
        "rbf": np.exp(pre - 0.5 * (x**2).sum(1, keepdim=True).numpy()),
    }[activation]
    given = x.clone()
    codes = sparse_codes(dictionary, x)
    np.testing.assert_allclose(codes.toarray(), wanted, rtol=1e-5, atol=1e-6)
    assert codes.dtype == np.float32 and codes.has_canonical_format and codes.nnz == (wanted != 0).sum()
    assert torch.equal(x, given)


def test_tokens_without_active_features_have_codes_too():
    dictionary = Dictionary(torch.eye(4), torch.zeros(4), "jumprelu", torch.ones(4), None, torch.eye(4), torch.zeros(4))
    codes = sparse_codes(dictionary, torch.zeros(5, 4))
    assert codes.shape == (5, 4) and codes.nnz == 0
