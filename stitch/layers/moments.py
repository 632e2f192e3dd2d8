"""Moments of the residual stream at a site, up to the fourth of every channel, also after a random rotation."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass
class Moments:
    """Sums over tokens, in float64. `rotation` is orthogonal."""

    rotation: Float[Tensor, "d d"]
    tokens: int = 0
    products: Float[Tensor, "d d"] | None = None
    powers: Float[Tensor, "4 d"] | None = None  # sums of x, x², x³ and x⁴, by channel
    turned: Float[Tensor, "4 d"] | None = None  # the same of the rotated stream
    lengths: list[Float[Tensor, " tokens"]] = field(default_factory=list)

    def add(self, x: Float[Tensor, "tokens d"]) -> None:
        x = x.double()
        products, powers, turned = x.T @ x, _powers(x), _powers(x @ self.rotation)
        self.tokens += len(x)
        self.products = products if self.products is None else self.products + products
        self.powers = powers if self.powers is None else self.powers + powers
        self.turned = turned if self.turned is None else self.turned + turned
        self.lengths.append(x.norm(dim=1))

    @property
    def covariance(self) -> Float[Tensor, "d d"]:
        assert self.products is not None and self.powers is not None
        mean = self.powers[0] / self.tokens
        return self.products / self.tokens - mean[:, None] * mean

    @property
    def kurtosis(self) -> float:
        """Of all channels' values around their means, in one pool: 3 where they are normal with one variance."""
        assert self.powers is not None
        return _kurtosis(self.powers / self.tokens)

    @property
    def kurtosis_turned(self) -> float:
        assert self.turned is not None
        return _kurtosis(self.turned / self.tokens)


def rotation(width: int, seed: int) -> Float[Tensor, "d d"]:
    """A random orthogonal matrix, in float64."""
    drawn = torch.randn(width, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(drawn)[0]


def _powers(x: Tensor) -> Tensor:
    return torch.stack([x.pow(power).sum(0) for power in (1, 2, 3, 4)])


def _kurtosis(raw: Float[Tensor, "4 d"]) -> float:
    first, second, third, fourth = raw
    variance = second - first**2
    central = fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4
    return float(central.mean() / variance.mean() ** 2)
