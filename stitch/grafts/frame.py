"""Where a donor's residual stream lies in a host's: channels that nothing else of the host writes to."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Frame:
    """A donor's stream x is the host's x @ write; what the host's norm makes of that, read back, is what the donor's makes of x.

    Every token has the unit vector `constant` `length` times, every position its code in `codes`, `length` long; both are None
    where nothing needs them. `lanes` is an orthonormal basis of all of it.
    """

    lanes: Float[Tensor, "lanes d_host"]
    write: Float[Tensor, "d_donor d_host"]
    read: Float[Tensor, "d_host d_donor"]
    constant: Float[Tensor, " d_host"] | None
    codes: Float[Tensor, "columns d_host"] | None
    length: float
    kept: float  # share of the donor's reads that the channels hold; 1 where they hold its whole stream


def whole(channels: Float[Tensor, "d_donor d_host"], centred: bool) -> tuple[Tensor, Tensor]:
    """(write, read) for as many channels as the donor has: longer by √(d_host / d_donor), so that mean squares are equal.

    A `centred` donor never sees the mean of its stream, so it isn't written.
    """
    stretch = (channels.shape[1] / channels.shape[0]) ** 0.5
    written = channels - channels.mean(0, keepdim=True) if centred else channels
    return stretch * written, channels.T / stretch


def narrowed(
    channels: Float[Tensor, "r d_host"],
    moment: Float[Tensor, "d_donor d_donor"],
    reads: Float[Tensor, "d_donor columns"],
) -> tuple[Tensor, Tensor, float]:
    """(write, read, share kept) for fewer channels than the donor has: what loses least of `reads`, mean square over `moment`.

    Norms of single tokens are not kept. Source: Eckart & Young 1936, in the metric of the donor's directions.
    """
    rank, width = channels.shape
    values, vectors = torch.linalg.eigh(moment)
    root = values.clamp_min(0).sqrt()
    inverse = torch.where(root > 1e-6 * root.max(), 1 / root.clamp_min(1e-300), 0.0)
    to, back = (vectors * inverse) @ vectors.T, (vectors * root) @ vectors.T
    seen = back @ reads
    strengths, directions = torch.linalg.eigh(seen @ seen.T)
    best, stretch = directions[:, -rank:], (width / rank) ** 0.5
    kept = float(strengths[-rank:].sum() / strengths.clamp_min(0).sum())
    return to @ best @ channels * stretch, channels.T @ best.T @ back / stretch, kept
