"""Reconstruction error and sparsity of a dictionary on a stream of activations."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sae.errors import SAEError
from sae.types import Dictionary


@dataclass(frozen=True)
class Quality:
    """Quality of a dictionary over `tokens` tokens.

    fvu   fraction of variance unexplained, Σ‖x − x̂‖² / Σ‖x − mean‖².
    r2    mean over dimensions of 1 − residual / variance; constant dimensions are left out.
    l0    mean number of active features per token.
    dead  share of features that were never active.
    """

    tokens: int
    fvu: float
    r2: float
    l0: float
    dead: float


@torch.no_grad()
def measure(dictionary: Dictionary, batches: Iterable[Float[Tensor, "_ d"]]) -> Quality:
    """Quality over all `batches` of activations, computed on the dictionary's device with sums in float64.

    Raises: SAEError when the stream is empty or constant, holds NaN, or has another width than the dictionary.
    """
    device = dictionary.decoder.device
    features, width = dictionary.decoder.shape
    error, first, second = (torch.zeros(width, dtype=torch.float64, device=device) for _ in range(3))
    fired = torch.zeros(features, dtype=torch.bool, device=device)
    active = torch.zeros((), dtype=torch.int64, device=device)
    shift = None  # moments are taken about the first batch's mean: a residual stream's mean may be far larger than its deviation
    tokens = 0
    for batch in batches:
        if batch.shape[-1] != width:
            raise SAEError(f"activations must have the SAE's width {width}; got {batch.shape[-1]}.")
        x = batch.to(device)
        codes = dictionary.encode(x)
        residual = x.double() - dictionary.decode(codes).double()
        if shift is None:
            shift = x.double().mean(dim=0)
        centred = x.double() - shift
        error += residual.square().sum(dim=0)
        first += centred.sum(dim=0)
        second += centred.square().sum(dim=0)
        on = codes != 0
        fired |= on.any(dim=0)
        active += on.sum()
        tokens += len(x)
    if tokens == 0:
        raise SAEError("measuring an SAE needs at least one batch of activations; the stream was empty.")
    variance = second - first.square() / tokens
    varying = variance > 0
    if not (error.isfinite().all() and variance.isfinite().all() and varying.any()):
        raise SAEError(
            f"activations must be finite and vary; those of the {tokens} tokens measured do not. Check the site and the text."
        )
    return Quality(
        tokens=tokens,
        fvu=(error.sum() / variance.sum()).item(),
        r2=(1 - error[varying] / variance[varying]).mean().item(),
        l0=active.item() / tokens,
        dead=1 - fired.double().mean().item(),
    )
