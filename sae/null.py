"""The untrained SAE: the null that a trained SAE is compared with."""

import torch
from jaxtyping import Float
from torch import Tensor

from sae.config import SAEConfig
from sae.errors import SAEError
from sae.types import Dictionary


@torch.no_grad()
def untrained(config: SAEConfig, sample: Float[Tensor, "tokens d"], generator: torch.Generator) -> Dictionary:
    """An SAE with the architecture, number of features and sparsity of `config`, whose directions are random.

    Decoder rows are uniform on the sphere and the encoder is their transpose. To make the null as strong as it can be
    without training, three things are fitted to `sample`: the decoder bias is the mean; one threshold for all features
    makes k of them active on average; one gain on the codes minimises the squared error. `generator` is a CPU
    generator, so that the directions are the same on every device.

    Raises: SAEError when the sample is empty, constant, or holds NaN.
    """
    if len(sample) == 0 or not sample.isfinite().all():
        raise SAEError(f"an untrained SAE needs a non-empty sample of finite activations; got {len(sample)} tokens.")
    x = sample.double()
    mean = x.mean(dim=0)
    centred = x - mean
    directions = torch.randn(config.features, x.shape[1], generator=generator, dtype=torch.float64)
    directions = (directions / directions.norm(dim=1, keepdim=True)).to(x.device)

    pre = centred @ directions.T
    if config.architecture == "topk":
        cut = pre.topk(config.k, dim=1).values[:, -1:].clamp(min=0)
        codes = pre * (pre >= cut)
    else:
        # The (k · tokens)-th largest pre-activation; everything above it is active.
        cut = pre.flatten().kthvalue(max(1, pre.numel() - config.k * len(x))).values.clamp(min=0)
        codes = (pre - cut).relu() if config.architecture == "standard" else pre * (pre > cut)
    reconstruction = codes @ directions
    energy = reconstruction.square().sum()
    if not energy > 0:
        raise SAEError("an untrained SAE needs activations that vary; those of the sample do not.")
    gain = (reconstruction * centred).sum() / energy

    encoder = gain * directions.T
    bias = -mean @ encoder
    if config.architecture == "standard":
        bias = bias - gain * cut
    jump = config.architecture in ("batchtopk", "matryoshka", "jumprelu")
    return Dictionary(
        encoder=encoder.float(),
        encoder_bias=bias.float(),
        activation="jumprelu" if jump else "topk" if config.architecture == "topk" else "relu",
        threshold=(gain * cut).float().expand(config.features).contiguous() if jump else None,
        k=config.k if config.architecture == "topk" else None,
        decoder=directions.float(),
        decoder_bias=mean.float(),
    )
