"""The channels of a host that hold a donor's residual stream, its position codes and a constant."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stitch.errors import UsageError
from stitch.grafts.placing import PlacedCircuit, PlacedHead, Transfer
from stitch.grafts.positions import PositionScheme
from stitch.internals import weights
from stitch.internals.weights import Spot

DOMINANT = 4.0  # length of dominant lanes, relative to the longest mean length of the stream
BESIDE_OTHERS = 8.0  # the same of a constant lane beside the streams of other donors
SLIGHT = 0.05  # share of the stream's smallest mean square that is in a constant lane which only replaces biases


@dataclass(frozen=True)
class Frame:
    """Where the host keeps the donor's stream: a stream x of the donor is x @ write in the host.

    The host's norm of that, times `read`, is the donor's norm of x. Every token also has `length` times the unit vector
    `constant`, and every position has its code in the rows of `codes`, `length` long. BOS alone has the vector `bos`. Each is
    None if the circuit does not need it. `lanes` is an orthonormal basis of all these channels.
    """

    lanes: Float[Tensor, "lanes d_host"]
    write: Float[Tensor, "d_donor d_host"]
    read: Float[Tensor, "d_host d_donor"]
    constant: Float[Tensor, " d_host"] | None
    codes: Float[Tensor, "columns d_host"] | None
    bos: Float[Tensor, " d_host"] | None
    length: float
    kept: float  # share of what the donor reads that the channels hold, in mean square; 1 if they hold its whole stream


def frame_for(
    transfer: Transfer,
    placed: PlacedCircuit,
    unembedding: Float[Tensor, "d vocabulary"],
    inputs: Mapping[Spot, Float[Tensor, "prompts length d"]],
    lengths: Mapping[Spot, Tensor],
    *,
    has_constant: bool,
    has_bos: bool,
    channels: int | None,
    dominant: bool = False,
    beside_others: bool = False,
) -> Frame:
    """Takes the frame's channels from the host's free space: the donor's whole width if it fits and `channels` allows it, else as
    many as there are, for the directions that the circuit reads most.

    `inputs` are the donor's normalised streams by spot, `lengths` the streams' root mean squares. `dominant`: the lanes are so
    long beside the stream that norms, and with them what is read of the codes, hardly depend on it. `beside_others`: so is the
    constant lane, since the norms that a donor reads through would depend on the streams of the others. That its own length does
    not count then either costs less.
    Raises: UsageError when no channel is left.
    """
    donor, host, space, scheme = transfer.donor, transfer.host, transfer.space, transfer.scheme
    code_columns = (
        2 * len(scheme.code_frequencies) if any(head.maps.q_codes is not None for head in placed.heads) else 0
    )
    rank = min(donor.width, space.free - code_columns - has_constant - has_bos, channels or donor.width)
    if rank < 1:
        raise UsageError(f"the graft needs channels; {space.free} of {host.name} are free: choose a wider host.")
    lanes = space.take_channels(rank + code_columns + has_constant + has_bos)
    stream_lanes, code_lanes, constant_lane, bos_lane = lanes.split([rank, code_columns, has_constant, has_bos])
    if rank == donor.width:
        (write, read), kept = whole(stream_lanes, weights.norm(donor, "final").centred), 1.0
    else:
        moment = _mean_moment(inputs)
        write, read, kept = narrowed(stream_lanes, moment, _maps_of_equal_weight(placed, unembedding, moment))
    length = _lane_length(scheme, [head for head in placed.heads if head.offset is not None], lengths)
    longest = max(float(each.mean()) for each in lengths.values())
    if dominant and code_columns:
        length = max(length, DOMINANT * longest)
    if beside_others:
        length = max(length, BESIDE_OTHERS * longest)
    return Frame(
        lanes=lanes,
        write=write,
        read=read,
        constant=constant_lane[0] if has_constant else None,
        codes=code_lanes if code_columns else None,
        bos=_slight(lengths) * host.width**0.5 * bos_lane[0] if has_bos else None,
        length=length * host.width**0.5,
        kept=kept,
    )


def whole(channels: Float[Tensor, "d_donor d_host"], centred: bool) -> tuple[Tensor, Tensor]:
    """(write, read) for as many channels as the donor has; scaled by √(d_host / d_donor), so that mean squares are equal.

    A `centred` donor never reads the mean of its stream, so it is not written.
    """
    stretch = (channels.shape[1] / channels.shape[0]) ** 0.5
    written = channels - channels.mean(0, keepdim=True) if centred else channels
    return stretch * written, channels.T / stretch


def narrowed(
    channels: Float[Tensor, "r d_host"],
    moment: Float[Tensor, "d_donor d_donor"],
    reads: Float[Tensor, "d_donor columns"],
) -> tuple[Tensor, Tensor, float]:
    """(write, read, share kept) for fewer channels than the donor has: they lose least of `reads`, in mean square over inputs
    with the second `moment`.

    The norms of single tokens are not kept. Source: Eckart & Young 1936, in the metric of the donor's inputs.
    """
    rank, width = channels.shape
    values, vectors = torch.linalg.eigh(moment)
    root = values.clamp_min(0).sqrt()
    inverse = torch.where(root > 1e-6 * root.max(), 1 / root.clamp_min(1e-300), 0.0)
    whiten, colour = (vectors * inverse) @ vectors.T, (vectors * root) @ vectors.T
    coloured_reads = colour @ reads
    strengths, directions = torch.linalg.eigh(coloured_reads @ coloured_reads.T)
    best, stretch = directions[:, -rank:], (width / rank) ** 0.5
    kept = float(strengths[-rank:].sum() / strengths.clamp_min(0).sum())
    return whiten @ best @ channels * stretch, channels.T @ best.T @ colour / stretch, kept


def _mean_moment(inputs: Mapping[Spot, Tensor]) -> Float[Tensor, "d d"]:
    """The second moment of the normalised streams, averaged over spots."""
    rows = [each.flatten(0, 1) for each in inputs.values()]
    return torch.stack([each.T @ each / len(each) for each in rows]).mean(0)


def _maps_of_equal_weight(placed: PlacedCircuit, unembedding: Tensor, moment: Tensor) -> Float[Tensor, "d columns"]:
    """All maps that read the stream side by side, each divided by the root mean square of what it reads."""
    maps = [each for head in placed.heads for each in (head.maps.q, head.maps.k, head.maps.v)] + [unembedding]
    maps += [each for neurons in placed.neurons for each in (neurons.maps.gate, neurons.maps.up) if each is not None]
    return torch.cat([each / ((moment @ each) * each).sum().sqrt() for each in maps if each.any()], 1)


def _lane_length(scheme: PositionScheme, offset_heads: list[PlacedHead], lengths: Mapping[Spot, Tensor]) -> float:
    """The root mean square of a constant lane or a code.

    It is slight beside the stream unless offset heads read it; then norms must vary no more than these heads tolerate.
    """
    enough = _slight(lengths) ** 2
    if offset_heads and not scheme.by_bias:
        squares = torch.cat([lengths["attention", head.block].flatten() for head in offset_heads]).square()
        low, high = torch.quantile(squares, torch.tensor([0.005, 0.995], dtype=torch.float64)).tolist()
        tolerance = min(head.offset.tolerance for head in offset_heads if head.offset is not None) ** 2
        enough = max(enough, (high - tolerance * low) / (tolerance - 1))
    return enough**0.5


def _slight(lengths: Mapping[Spot, Tensor]) -> float:
    """The root mean square of a lane that hardly changes the norms."""
    return (SLIGHT * min(float(each.square().mean()) for each in lengths.values())) ** 0.5
