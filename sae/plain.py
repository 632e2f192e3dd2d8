"""An SAE of SAELens from plain matrices, as readers of other formats find them."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from sae.errors import SAEError

if TYPE_CHECKING:
    import sae_lens

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def from_matrices(
    folder: Path,
    architecture: Literal["standard", "topk", "jumprelu"],
    weights: dict[str, torch.Tensor],
    *,
    k: int | None = None,
    subtracts: bool,
    model: str | None,
    hook: str | None,
    device: str,
) -> "sae_lens.SAE":
    """The SAE with SAELens's `weights`: W_enc [d, features], b_enc, W_dec [features, d], b_dec, threshold [features].

    `subtracts`: the decoder bias is taken from the input. A single threshold is one for every feature. topk needs `k`. `folder`
    is named in errors.
    Raises: SAEError where shapes or types of numbers do not agree, or k and the features.
    """
    from sae_lens import JumpReLUSAE, JumpReLUSAEConfig, StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    encoder = weights["W_enc"]
    if encoder.ndim != 2 or not min(encoder.shape):
        raise SAEError(f"an encoder must be a matrix; that of {folder} has the shape {tuple(encoder.shape)}.")
    width, features = encoder.shape
    if "threshold" in weights and weights["threshold"].ndim == 0:
        weights = {**weights, "threshold": weights["threshold"].expand(features).clone()}
    right = {"b_enc": (features,), "W_dec": (features, width), "b_dec": (width,), "threshold": (features,)}
    for name, tensor in weights.items():
        if tuple(tensor.shape) != right.get(name, (width, features)) or tensor.dtype not in FLOATS:
            raise SAEError(
                f"the tensors of an SAE must agree; with an encoder of width {width} and {features} features {folder} has a "
                f"{name} of shape {tuple(tensor.shape)} and type {str(tensor.dtype).removeprefix('torch.')}."
            )
    form = {
        "d_in": width, "d_sae": features, "dtype": str(encoder.dtype).removeprefix("torch."), "device": device,
        "apply_b_dec_to_input": subtracts, "normalize_activations": "none",
        "metadata": SAEMetadata(model_name=model, hook_name=hook),
    }  # fmt: skip
    if architecture == "topk":
        if k is None or not 1 <= k <= features:
            raise SAEError(f"k must be in 1..{features}, the features of {folder}; got {k}.")
        found = TopKSAE(TopKSAEConfig(**form, k=k))
    elif architecture == "jumprelu":
        found = JumpReLUSAE(JumpReLUSAEConfig(**form))
    else:
        found = StandardSAE(StandardSAEConfig(**form))
    found.load_state_dict({name: tensor.to(encoder.dtype) for name, tensor in weights.items()})
    return found.to(device)
