"""A Dictionary computes what SAELens computes, for every architecture it can represent."""

import pytest
import torch

from sae.convert import to_dictionary
from sae.errors import SAEError

pytestmark = pytest.mark.numeric

D, FEATURES = 12, 40


def _randomised(sae, seed=0):
    """Weights that every folding changes: decoder norms from 0.2 to 3, biases everywhere."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sae.state_dict().items():
        values = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        parameter.copy_(values * 0.3 if name != "threshold" else values.abs() * 0.5 - 0.1)
    return sae


def _inputs(dtype=torch.float64):
    return torch.randn(2, 50, D, generator=torch.Generator().manual_seed(7), dtype=dtype) * 2 + 0.5


def _inference(architecture, **settings):
    import sae_lens

    config_class = {
        "standard": sae_lens.StandardSAEConfig,
        "gated": sae_lens.GatedSAEConfig,
        "topk": sae_lens.TopKSAEConfig,
        "jumprelu": sae_lens.JumpReLUSAEConfig,
    }[architecture]
    settings = {"d_in": D, "d_sae": FEATURES, "dtype": "float64"} | settings
    return _randomised(sae_lens.SAE.from_dict({**config_class(**settings).to_dict(), "architecture": architecture}))


@pytest.mark.parametrize("subtracts_b_dec", [True, False])
@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("standard", {}),
        ("gated", {}),
        ("jumprelu", {}),
        ("topk", {"k": 5, "rescale_acts_by_decoder_norm": True}),
    ],
)
@torch.no_grad()
def test_a_dictionary_computes_what_saelens_computes(architecture, settings, subtracts_b_dec):
    sae = _inference(architecture, apply_b_dec_to_input=subtracts_b_dec, **settings)
    dictionary = to_dictionary(sae)
    x = _inputs()
    norms = sae.W_dec.norm(dim=-1)
    # SAELens's topk codes already hold the decoder norms; the others' do not.
    codes = sae.encode(x) * (1 if architecture == "topk" else norms)
    torch.testing.assert_close(dictionary.encode(x), codes, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(dictionary(x), sae(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(dictionary.decoder.norm(dim=1), torch.ones(FEATURES, dtype=torch.float64))
    assert 0 < (codes != 0).double().mean() < 1


@torch.no_grad()
def test_topk_that_selects_before_rescaling_needs_equal_decoder_norms():
    sae = _inference("topk", k=5)
    with pytest.raises(SAEError, match=r"rows of equal norm; the norms range from .*Use another SAE\.$"):
        to_dictionary(sae)
    sae.W_dec.data *= 1.7 / sae.W_dec.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(to_dictionary(sae)(_inputs()), sae(_inputs()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("architecture", ["batchtopk", "topk", "jumprelu", "standard", "matryoshka"])
@torch.no_grad()
def test_a_training_sae_converts_to_what_saelens_saves(architecture, tmp_path):
    import sae_lens

    from sae.config import SAEConfig
    from sae.trainer import new_trainer

    sae = new_trainer(SAEConfig(architecture=architecture, features=FEATURES, k=4), D, "cpu").sae
    _randomised(sae)
    sae.to(torch.float64)
    sae.fold_activation_norm_scaling_factor(1.3)
    if hasattr(sae, "topk_threshold"):
        sae.topk_threshold.fill_(0.4)
    sae.save_inference_model(tmp_path)
    saved = sae_lens.SAE.load_from_disk(tmp_path)
    dictionary = to_dictionary(sae)
    torch.testing.assert_close(dictionary(_inputs()), saved(_inputs()), rtol=1e-6, atol=1e-6)
    for name in ("encoder", "encoder_bias", "threshold", "decoder", "decoder_bias"):
        in_memory, on_disk = getattr(dictionary, name), getattr(to_dictionary(saved), name)
        assert in_memory is on_disk is None or torch.equal(in_memory, on_disk)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"normalize_activations": "layer_norm"}, "must take raw activations; this one has .*layer_norm"),
        ({"normalize_activations": "expected_average_only_in"}, "normalisation is folded into its weights"),
        ({"reshape_activations": "hook_z"}, "reads attention heads"),
    ],
)
def test_input_handling_that_a_dictionary_cannot_represent_is_refused(settings, message):
    with pytest.raises(SAEError, match=message):
        to_dictionary(_inference("standard", **settings))


def test_an_architecture_that_a_dictionary_cannot_represent_is_refused():
    import sae_lens

    sae = sae_lens.AbsTopKSAE(sae_lens.AbsTopKSAEConfig(d_in=D, d_sae=FEATURES, k=4))
    with pytest.raises(SAEError, match=r"must be standard, gated, topk or jumprelu .*'abstopk'"):
        to_dictionary(sae)


def test_half_precision_is_converted_and_input_of_any_precision_accepted():
    sae = _inference("standard", dtype="bfloat16")
    dictionary = to_dictionary(sae)
    assert dictionary.encoder.dtype == torch.float32
    x = _inputs(torch.bfloat16)
    torch.testing.assert_close(dictionary(x), dictionary(x.float()), rtol=0, atol=0)
