"""LinearPatch (arXiv 2505.24680): the stream at the seam is rotated by a Hadamard matrix H, each channel is scaled so that its
mean magnitude is what the next block expects, and the rotation is undone: P = H D Hᵀ.

D is the mean over windows of (mean |L H|) / (mean |X H|), by channel, where X is the stream that arrives at the seam and L the
stream that the block there expects.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

_PASSES = 1e-30  # a channel that is always 0 is not divided by 0


def linear_patch(
    pairs: Iterable[tuple[Float[Tensor, "windows context d"], Float[Tensor, "windows context d"]]],
) -> Float[Tensor, "d d"] | None:
    """P from pairs of arriving and expected streams, in float64. None where no Hadamard matrix of their width is known here."""
    total, windows, rotation = None, 0, None
    for arriving, expected in pairs:
        if rotation is None and (rotation := rotation_of(arriving.shape[-1])) is None:
            return None
        sizes = [(stream @ rotation).abs().mean(1) for stream in (expected, arriving)]
        ratios = (sizes[0] / sizes[1].clamp_min(_PASSES)).sum(0)
        total, windows = ratios if total is None else total + ratios, windows + len(arriving)
    assert total is not None and rotation is not None, "there is at least one window"
    return rotation @ ((total / windows)[:, None] * rotation.T)


def rotation_of(width: int) -> Float[Tensor, "d d"] | None:
    """A Hadamard matrix divided by √width, so that it is orthogonal, in float64; None if none is known here."""
    found = hadamard(width)
    return None if found is None else found / width**0.5


def hadamard(order: int) -> Float[Tensor, "n n"] | None:
    """A matrix of ±1 with orthogonal rows, by Kronecker products of Paley's matrices; None where these do not give one.

    A prime q gives one of order q + 1 for q = 3 mod 4, and one of order 2 (q + 1) for q = 1 mod 4. Source: Paley 1933, J. Math.
    Phys. 12.
    """
    if order == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    if order == 2:
        return torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    if order % 4:
        return None
    for factor in (factor for factor in range(2, order) if order % factor == 0):  # the smallest, 2, gives Sylvester's
        parts = _hadamard_by_factor(factor, order // factor)
        if parts is not None:
            return torch.kron(*parts)
    if _is_prime(order - 1):
        return _first_kind(order - 1)
    return _second_kind(order // 2 - 1) if _is_prime(order // 2 - 1) and (order // 2 - 1) % 4 == 1 else None


def _hadamard_by_factor(first: int, second: int) -> tuple[Tensor, Tensor] | None:
    if any(number != 2 and number % 4 for number in (first, second)):
        return None
    one, other = hadamard(first), hadamard(second)
    return None if one is None or other is None else (one, other)


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))


def _jacobsthal(q: int) -> Float[Tensor, "q q"]:
    """χ(i − j): 1 where i − j is a square modulo q, −1 where it is not, 0 on the diagonal."""
    character = -torch.ones(q, dtype=torch.float64)
    character[torch.arange(q) ** 2 % q] = 1
    character[0] = 0
    numbers = torch.arange(q)
    return character[(numbers[:, None] - numbers) % q]


def _first_kind(q: int) -> Float[Tensor, "n n"]:
    """Paley's matrix I + S of order q + 1 for q = 3 mod 4, with S skew."""
    skew = torch.zeros(q + 1, q + 1, dtype=torch.float64)
    skew[0, 1:], skew[1:, 0], skew[1:, 1:] = 1, -1, _jacobsthal(q)
    return skew + torch.eye(q + 1, dtype=torch.float64)


def _second_kind(q: int) -> Float[Tensor, "n n"]:
    """Paley's matrix of order 2 (q + 1) for q = 1 mod 4, with a symmetric conference matrix C."""
    conference = torch.zeros(q + 1, q + 1, dtype=torch.float64)
    conference[0, 1:], conference[1:, 0], conference[1:, 1:] = 1, 1, _jacobsthal(q)
    plus, minus = torch.tensor([[1.0, 1.0], [1.0, -1.0]]).double(), torch.tensor([[1.0, -1.0], [-1.0, -1.0]]).double()
    return torch.kron(conference, plus) + torch.kron(torch.eye(q + 1, dtype=torch.float64), minus)
