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
    sums = _Sums(dictionary)
    for batch in batches:
        sums.add(batch)
    return sums.quality()


class _Sums:
    """Sums over tokens from which a quality follows, by dimension or by feature."""

    def __init__(self, dictionary: Dictionary) -> None:
        self.dictionary, self.device = dictionary, dictionary.decoder.device
        features, self.width = dictionary.decoder.shape
        self.error, self.first, self.second = (
            torch.zeros(self.width, dtype=torch.float64, device=self.device) for _ in range(3)
        )
        self.fired = torch.zeros(features, dtype=torch.bool, device=self.device)
        self.active = torch.zeros((), dtype=torch.int64, device=self.device)
        self.tokens = 0
        # Moments are taken about the first batch's mean: a residual stream's mean may be far larger than its deviation.
        self.shift: Tensor | None = None

    def add(self, batch: Float[Tensor, "_ d"]) -> None:
        if batch.shape[-1] != self.width:
            raise SAEError(f"activations must have the SAE's width {self.width}; got {batch.shape[-1]}.")
        if not len(batch):
            return
        x = batch.to(self.device)
        codes = self.dictionary.encode(x)
        residual = x.double() - self.dictionary.decode(codes).double()
        if self.shift is None:
            self.shift = x.double().mean(dim=0)
        centred = x.double() - self.shift
        self.error += residual.square().sum(dim=0)
        self.first += centred.sum(dim=0)
        self.second += centred.square().sum(dim=0)
        active = codes != 0
        self.fired |= active.any(dim=0)
        self.active += active.sum()
        self.tokens += len(x)

    def quality(self) -> Quality:
        if self.tokens == 0:
            raise SAEError("measuring an SAE needs at least one batch of activations; the stream was empty.")
        variance = self.second - self.first.square() / self.tokens
        varying = variance > 0
        if not (self.error.isfinite().all() and variance.isfinite().all() and varying.any()):
            raise SAEError(
                f"activations must be finite and vary; those of the {self.tokens} tokens measured do not. "
                "Check the site and the text."
            )
        return Quality(
            tokens=self.tokens,
            fvu=(self.error.sum() / variance.sum()).item(),
            r2=(1 - self.error[varying] / variance[varying]).mean().item(),
            l0=self.active.item() / self.tokens,
            dead=1 - self.fired.double().mean().item(),
        )
