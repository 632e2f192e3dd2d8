"""An SAE as plain tensors, independent of the library that trained it."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Dictionary:
    """A sparse autoencoder whose decoder rows have unit norm, so that codes have the units of x.

    Subtracting the decoder bias from the input is folded into the encoder bias: `pre = x @ encoder + encoder_bias`. Codes are
        relu      z = max(pre, 0)
        jumprelu  z = pre where pre > threshold (threshold ≥ 0, in the units of the codes), else 0
        topk      z = max(pre, 0) on the k largest of each row, else 0
        rbf       z = exp(pre − ‖x‖² · threshold), a Gaussian bump whose centre the encoder and its bias hold (not for SAEs)
    and `x̂ = z @ decoder + decoder_bias`.
    """

    encoder: Float[Tensor, "d features"]
    encoder_bias: Float[Tensor, " features"]
    activation: Literal["relu", "jumprelu", "topk", "rbf"]
    threshold: Float[Tensor, " features"] | None
    k: int | None
    decoder: Float[Tensor, "features d"]
    decoder_bias: Float[Tensor, " d"]

    def encode(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch features"]:
        # In place, because the first write to newly allocated memory costs more than the arithmetic.
        pre = (x.to(self.encoder.dtype) @ self.encoder).add_(self.encoder_bias)
        if self.activation == "relu":
            return pre.relu_()
        if self.activation == "jumprelu":
            assert self.threshold is not None
            return pre.mul_(pre > self.threshold)
        if self.activation == "rbf":
            assert self.threshold is not None
            return (pre - x.to(pre.dtype).square().sum(-1, keepdim=True) * self.threshold).exp()
        assert self.k is not None
        values, indices = pre.topk(self.k, dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter_(-1, indices, values.relu())

    def decode(self, z: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch d"]:
        return z.to(self.decoder.dtype) @ self.decoder + self.decoder_bias

    def __call__(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        return self.decode(self.encode(x))
