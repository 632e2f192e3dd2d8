"""Which channels of a host's residual stream hold a donor's stream, positions and a constant."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stitch.errors import UsageError
from stitch.grafts.allocation import FreeSpace
from stitch.grafts.norm_inputs import Spot
from stitch.grafts.placing import PlacedHead, PlacedNeurons
from stitch.grafts.positions import PositionScheme
from stitch.internals import weights
from stitch.models.model import Model


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


PIN = 4.0  # length of codes beside the stream where that is longest, if they are to be read alike everywhere

SLIGHT = 0.05  # of the stream's mean square, in a constant lane that only stands in for biases


def frame_for(
    donor: Model,
    host: Model,
    space: FreeSpace,
    scheme: PositionScheme,
    placed: list[PlacedHead],
    inner: list[PlacedNeurons],
    unembedding: Tensor,
    constant: bool,
    x: Mapping[Spot, Tensor],
    long: Mapping[Spot, Tensor],
    channels: int | None,
    pinned: bool = False,
) -> Frame:
    """Taken from `space`: the donor's whole width if it fits (and `channels` allows), else what its reads need most of all.

    `x` are the directions that the donor's norms read, `long` their lengths. `pinned`: codes are so long that what is read of
    them hardly depends on the stream, nor does any norm. Raises UsageError when no channel is left.
    """
    offsets = [head for head in placed if head.offset is not None]
    codes = 2 * len(scheme.code_frequencies) if any(head.maps.q_codes is not None for head in placed) else 0
    rank = min(donor.width, space.free - codes - constant, channels or donor.width)
    if rank < 1:
        raise UsageError(f"the graft needs channels; {space.free} of {host.name} are free: choose a wider host.")
    lanes = space.take_channels(rank + codes + constant)
    own, code_lanes, constant_lane = lanes.split([rank, codes, constant])
    if rank == donor.width:
        (write, read), kept = whole(own, weights.norm(donor, "final").centred), 1.0
    else:
        rows = [one.flatten(0, 1) for one in x.values()]
        moment = torch.stack([one.T @ one / len(one) for one in rows]).mean(0)
        maps = [map for head in placed for map in (head.maps.q, head.maps.k, head.maps.v)] + [unembedding]
        maps += [map for one in inner for map in (one.maps.gate, one.maps.up) if map is not None]
        equal = [map / ((moment @ map) * map).sum().sqrt() for map in maps if map.any()]
        write, read, kept = narrowed(own, moment, torch.cat(equal, 1))
    return Frame(
        lanes=lanes,
        write=write,
        read=read,
        constant=constant_lane[0] if constant else None,
        codes=code_lanes if codes else None,
        length=max(_lane_length(scheme, offsets, long), _pin(long) if pinned and codes else 0.0) * host.width**0.5,
        kept=kept,
    )


def _pin(long: Mapping[Spot, Tensor]) -> float:
    return PIN * max(float(one.mean()) for one in long.values())


def _lane_length(scheme: PositionScheme, offsets: list[PlacedHead], long: Mapping[Spot, Tensor]) -> float:
    """Of a constant lane or a code, beside √(mean square) of the stream: little, or so much that norms vary as little as heads
    that read it take."""
    enough = SLIGHT * min(float(one.square().mean()) for one in long.values())
    if offsets and not scheme.by_bias:
        read = torch.cat([long["attention", head.block].flatten() for head in offsets])
        low, high = torch.quantile(read.square(), torch.tensor([0.005, 0.995], dtype=torch.float64)).tolist()
        tolerance = min(head.offset.tolerance for head in offsets if head.offset is not None) ** 2
        enough = max(enough, (high - tolerance * low) / (tolerance - 1))
    return enough**0.5
