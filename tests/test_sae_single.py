"""`sae.train`: an SAE on an array."""

import numpy as np
import pytest
import torch

import sae


def _activations(tokens: int = 4096, width: int = 16, seed: int = 0) -> torch.Tensor:
    """Sparse sums of 32 directions, away from the origin."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(32, width, generator=generator)
    codes = torch.rand(tokens, 32, generator=generator) * (torch.rand(tokens, 32, generator=generator) < 0.1)
    return codes @ directions + 3


def test_it_explains_the_activations_and_is_the_same_again():
    x = _activations()
    found = sae.train(x, features=64, k=4, passes=20)
    rebuilt = found.decode(found.encode(x))
    assert ((x - rebuilt).square().sum() / (x - x.mean(0)).square().sum()) < 0.15
    short, again, other = (
        sae.train(given, features=64, k=4, passes=1, seed=seed).W_enc
        for given, seed in ((x, 0), (x.numpy(), 0), (x, 1))
    )
    assert torch.equal(again, short) and not torch.equal(other, short)


def test_low_precision_is_read_and_defaults_follow_the_tokens():
    found = sae.train(_activations().bfloat16(), k=4, passes=0.5)
    assert found.W_enc.shape == (16, 8 * 16) and found.W_enc.dtype == torch.float32


def test_what_cannot_be_trained_on_is_refused():
    for wrong, message in [
        (torch.ones(3, 4, 5), r"\[tokens, width\]"),
        (np.ones((300, 4), int), "floats"),
        (torch.ones(100, 4), "fill a batch of 256"),
        (torch.full((512, 4), torch.nan), "finite|NaN"),
    ]:
        with pytest.raises(sae.SAEError, match=message):
            sae.train(wrong)
    for options in ({"features": 0}, {"batch_size": 0}, {"passes": -3}):
        with pytest.raises(sae.SAEError, match="must be"):
            sae.train(_activations(), k=4, **options)


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka", "topk"])
def test_codes_of_a_token_do_not_depend_on_the_others_and_saelens_loads_what_it_writes(architecture, tmp_path):
    import sae_lens

    x = _activations()
    found = sae.train(x, features=64, k=4, passes=4, architecture=architecture)
    codes = found.encode(x[:100])
    alone = torch.cat([found.encode(row[None]) for row in x[:100]])
    torch.testing.assert_close(alone, codes)
    assert len({int(count) for count in (codes > 0).sum(1)}) > (architecture != "topk")
    found.save_model(tmp_path / "sae")
    torch.testing.assert_close(sae_lens.SAE.load_from_disk(tmp_path / "sae").encode(x[:100]), codes)
