"""How well a dictionary reconstructs a stream of activations, and how sparsely."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sae.errors import SAEError
from sae.types import Dictionary


@dataclass(frozen=True)
class Quality:
    """fvu: Σ‖x − x̂‖² / Σ‖x − mean‖². r2: mean over dimensions of 1 − residual/variance, constant dimensions left out.
    l0: mean active features per token. dead: share of features that were never active."""

    tokens: int
    fvu: float
    r2: float
    l0: float
    dead: float


@torch.no_grad()
def measure(dictionary: Dictionary, batches: Iterable[Float[Tensor, "_ d"]]) -> Quality:
    """Streamed over `batches` on the dictionary's device; sums in float64.

    Raises: SAEError on an empty or constant stream, on NaN, and on batches of another width.
    """
    device = dictionary.decoder.device
    features, width = dictionary.decoder.shape
    error, first, second = (torch.zeros(width, dtype=torch.float64, device=device) for _ in range(3))
    fired = torch.zeros(features, dtype=torch.bool, device=device)
    active = torch.zeros((), dtype=torch.int64, device=device)
    shift = None  # moments about an early mean: a residual stream's mean may dwarf its spread
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
            f"activations must be finite and vary over the {tokens} tokens measured. Check the site and the text."
        )
    return Quality(
        tokens=tokens,
        fvu=(error.sum() / variance.sum()).item(),
        r2=(1 - error[varying] / variance[varying]).mean().item(),
        l0=active.item() / tokens,
        dead=1 - fired.double().mean().item(),
    )
