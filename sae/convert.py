"""Converts SAEs and transcoders of SAELens into Dictionary, and a Dictionary or a training SAE into an SAE for inference."""

from typing import TYPE_CHECKING

import torch

from sae.errors import SAEError
from sae.types import Dictionary

if TYPE_CHECKING:
    import sae_lens


@torch.no_grad()
def to_dictionary(sae: "sae_lens.SAE") -> Dictionary:
    """A Dictionary that computes the same function as `sae`.

    Its decoder rows have unit norm, and the subtraction of the decoder bias is folded into the encoder bias. A training
    SAE is read in the form in which SAELens saves it (batchtopk and matryoshka become jumprelu). Folding is done in
    float64; the result has the SAE's dtype, or float32 for half-precision SAEs.

    Raises: SAEError where no such Dictionary exists: input normalised per token or by a factor that is not folded in,
    reshaped attention heads, topk that selects on codes with unequal decoder norms, or an architecture other than
    standard, gated, topk and jumprelu.
    """
    config, weights = _inference_form(sae)
    architecture = config["architecture"]
    if architecture not in ("standard", "gated", "topk", "jumprelu"):
        raise SAEError(f"an SAE must be standard, gated, topk or jumprelu to be used here; got {architecture!r}.")
    return _folded(architecture, config, weights)


@torch.no_grad()
def transcoder_to_dictionary(transcoder: "sae_lens.SAE") -> Dictionary:
    """A Dictionary that computes the same function as a transcoder whose input and output have the same width.

    Unlike an SAE, a transcoder does not subtract the decoder bias from its input.

    Raises: SAEError for a transcoder with a skip connection or with two widths, and as `to_dictionary` does.
    """
    config, weights = _inference_form(transcoder)
    architecture = {"transcoder": "standard", "jumprelu_transcoder": "jumprelu"}.get(config["architecture"])
    if architecture is None:
        raise SAEError(
            "a transcoder must be ReLU or JumpReLU, without a skip connection; "
            f"got {config['architecture']!r}. Use another transcoder."
        )
    if config["d_in"] != config["d_out"]:
        raise SAEError(
            f"a transcoder's input and output must have the same width; got {config['d_in']} and {config['d_out']}. "
            "Use another transcoder."
        )
    return _folded(architecture, {**config, "apply_b_dec_to_input": False}, weights)


@torch.no_grad()
def from_dictionary(dictionary: Dictionary) -> "sae_lens.SAE":
    """The SAE of SAELens that computes the same function as a ReLU or JumpReLU `dictionary`, in its dtype.

    Raises: SAEError for a dictionary with another activation.
    """
    from sae_lens import JumpReLUSAE, JumpReLUSAEConfig, StandardSAE, StandardSAEConfig

    if dictionary.activation not in ("relu", "jumprelu"):
        raise SAEError(
            f"a dictionary must be ReLU or JumpReLU to become an SAE here; this one is {dictionary.activation}."
        )
    features, width = dictionary.decoder.shape
    form = {
        "d_in": width, "d_sae": features, "dtype": str(dictionary.decoder.dtype).removeprefix("torch."), "device": "cpu",
        "apply_b_dec_to_input": False, "normalize_activations": "none",
    }  # fmt: skip
    jumps = dictionary.activation == "jumprelu"
    sae = JumpReLUSAE(JumpReLUSAEConfig(**form)) if jumps else StandardSAE(StandardSAEConfig(**form))
    weights = {
        "W_enc": dictionary.encoder, "b_enc": dictionary.encoder_bias, "W_dec": dictionary.decoder,
        "b_dec": dictionary.decoder_bias,
    }  # fmt: skip
    if dictionary.threshold is not None:
        weights["threshold"] = dictionary.threshold
    sae.load_state_dict({name: tensor.cpu() for name, tensor in weights.items()})
    return sae


def for_inference(sae: "sae_lens.SAE") -> "sae_lens.SAE":
    """The SAE that SAELens writes for a training SAE and loads again: batchtopk and matryoshka become jumprelu.

    Its codes of a row do not depend on the other rows of a call, as those of batchtopk do.
    """
    from sae_lens import SAE

    config, weights = _inference_form(sae)
    found = SAE.from_dict(config)
    found.load_state_dict(weights)
    return found.eval()


def _folded(architecture: str, config: dict, weights: dict[str, torch.Tensor]) -> Dictionary:
    if config["normalize_activations"] != "none":
        raise SAEError(
            "an SAE must take raw activations; "
            f"this one has normalize_activations = {config['normalize_activations']!r}. "
            "Use one whose normalisation is folded into its weights."
        )
    if config["reshape_activations"] != "none":
        raise SAEError("an SAE must read the residual stream; this one reads attention heads (hook_z). Use another.")

    decoder = weights["W_dec"].double()
    norms = decoder.norm(dim=-1).clamp(min=1e-8)  # the lower bound that SAELens uses
    if architecture == "topk" and not config["rescale_acts_by_decoder_norm"] and norms.max() > norms.min() * (1 + 1e-3):
        raise SAEError(
            "a topk SAE that selects before rescaling must have decoder rows of equal norm; "
            f"the norms range from {norms.min():.3g} to {norms.max():.3g}. Use another SAE."
        )

    encoder = weights["W_enc"].double()
    input_bias = weights["b_dec"].double() if config["apply_b_dec_to_input"] else torch.zeros_like(decoder[0])
    threshold = None
    if architecture == "gated":
        # Both paths use W_enc up to the factor exp(r_mag), so the gate is a threshold on the magnitude path.
        gain = weights["r_mag"].double().exp()
        threshold = weights["b_mag"].double() - weights["b_gate"].double() * gain
        encoder, bias = encoder * gain, weights["b_mag"].double()
    else:
        bias = weights["b_enc"].double()
    if architecture == "jumprelu":
        threshold = weights["threshold"].double()
    bias = bias - input_bias @ encoder

    dtype = torch.promote_types(weights["W_enc"].dtype, torch.float32)
    return Dictionary(
        encoder=(encoder * norms).to(dtype),
        encoder_bias=(bias * norms).to(dtype),
        activation="relu" if architecture == "standard" else "topk" if architecture == "topk" else "jumprelu",
        # SAELens also applies a ReLU, so a negative threshold acts as zero.
        threshold=None if threshold is None else (threshold * norms).clamp(min=0).to(dtype),
        k=config["k"] if architecture == "topk" else None,
        decoder=(decoder / norms[:, None]).to(dtype),
        decoder_bias=weights["b_dec"].to(dtype),
    )


def _inference_form(sae: "sae_lens.SAE") -> tuple[dict, dict[str, torch.Tensor]]:
    from sae_lens import TrainingSAE

    weights = sae.state_dict()
    if not isinstance(sae, TrainingSAE):
        return sae.cfg.to_dict(), weights
    sae.process_state_dict_for_saving_inference(weights)
    return sae.cfg.get_inference_sae_cfg_dict(), weights
