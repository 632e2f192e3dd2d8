"""SAELens SAE → Dictionary."""

from typing import TYPE_CHECKING

import torch

from sae.errors import SAEError
from sae.types import Dictionary

if TYPE_CHECKING:
    import sae_lens


@torch.no_grad()
def to_dictionary(sae: "sae_lens.SAE") -> Dictionary:
    """The same function as `sae`, with decoder rows of unit norm and the decoder's bias taken out of the encoder.

    A training SAE is read in the form SAELens saves it in (batchtopk and matryoshka become jumprelu). Folding is done
    in float64; the result has the SAE's dtype, half precisions widened to float32.

    Raises: SAEError where no such Dictionary exists: input normalised per token or not folded in, reshaped heads,
    topk selecting on codes with unequal decoder norms, or another architecture than standard, gated, topk, jumprelu.
    """
    config, weights = _inference_form(sae)
    architecture = config["architecture"]
    if architecture not in ("standard", "gated", "topk", "jumprelu"):
        raise SAEError(f"an SAE must be standard, gated, topk or jumprelu to be used here; got {architecture!r}.")
    return _folded(architecture, config, weights)


@torch.no_grad()
def transcoder_to_dictionary(transcoder: "sae_lens.SAE") -> Dictionary:
    """The same function as a transcoder that reads and writes activations of one width, as a Dictionary whose decoder's bias is
    no part of what it reads.

    Raises: SAEError for one with a skip connection, of two widths, or as `to_dictionary`.
    """
    config, weights = _inference_form(transcoder)
    architecture = {"transcoder": "standard", "jumprelu_transcoder": "jumprelu"}.get(config["architecture"])
    if architecture is None:
        raise SAEError(
            f"a transcoder must be ReLU or JumpReLU, without a skip connection; got {config['architecture']!r}: use another."
        )
    if config["d_in"] != config["d_out"]:
        raise SAEError(
            f"a transcoder must read and write one width; this one reads {config['d_in']} and writes {config['d_out']}."
        )
    return _folded(architecture, {**config, "apply_b_dec_to_input": False}, weights)


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
    norms = decoder.norm(dim=-1).clamp(min=1e-8)  # SAELens's own floor
    if architecture == "topk" and not config["rescale_acts_by_decoder_norm"] and norms.max() > norms.min() * (1 + 1e-3):
        raise SAEError(
            "a topk SAE that selects before rescaling must have decoder rows of equal norm; "
            f"this one's lie in {norms.min():.3g}..{norms.max():.3g}. Use another SAE."
        )

    encoder = weights["W_enc"].double()
    input_bias = weights["b_dec"].double() if config["apply_b_dec_to_input"] else torch.zeros_like(decoder[0])
    threshold = None
    if architecture == "gated":
        # Both paths share W_enc up to the factor exp(r_mag), so the gate is a threshold on the magnitude path.
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
        # SAELens applies relu besides the threshold: a negative threshold acts as zero.
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
