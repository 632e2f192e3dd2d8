"""Places all heads and neurons of a circuit in a host, one block after another."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Int64
from torch import Tensor

from stitch.circuits.components import Components, Place
from stitch.circuits.shallow import ShallowModel
from stitch.errors import StitchError, UsageError
from stitch.grafts.donor_streams import DonorStreams, donor_streams
from stitch.grafts.placing import PlacedHead, PlacedNeurons, Transfer, place_head, place_neurons
from stitch.grafts.written_positions import PlacedPositions
from stitch.internals import weights
from stitch.models.model import Model


@dataclass(frozen=True)
class PlacedHeads:
    """The circuit's heads in their places, the host's blocks by the donor's, and the streams that they read."""

    layers: dict[int, int]
    streams: DonorStreams
    heads: list[PlacedHead]


def place_all_heads(
    transfer: Transfer,
    kept: Components,
    means: Mapping[Place, Tensor],
    ids: Int64[Tensor, "prompts length"],
    positions: PlacedPositions | None,
    shallow: ShallowModel | None,
) -> PlacedHeads:
    """Takes the heads of the circuit, and those that write positions before them, from the host's free space."""
    donor, host = transfer.donor, transfer.host
    layers = _layers(donor, kept, host, shallow, first=0 if positions is None else positions.blocks)
    lost = None if positions is None else positions.lost(ids.shape[1])
    streams = donor_streams(donor, kept, means, ids, list(layers), lost, shallow)
    for _ in [] if positions is None else positions.groups:
        transfer.space.take_group(0, weights.attention(host, 0).k.shape[1])
    placed = [
        place_head(
            transfer,
            (block, number),
            layers[block],
            streams.normalised["attention", block],
            streams.in_host["attention", block],
            streams.read_maps.get(("attention", block)),
        )
        for block in layers
        for number in kept.masks["heads", block].nonzero()[:, 0].tolist()
    ]
    return PlacedHeads(layers, streams, placed)


def place_all_neurons(
    transfer: Transfer, kept: Components, found: PlacedHeads, first_block: int
) -> list[PlacedNeurons]:
    """The neurons of the circuit in their places, of the donor's blocks from `first_block` on."""
    return [
        place_neurons(
            transfer,
            block,
            kept.masks["neurons", block],
            found.layers[block],
            found.streams.in_host["mlp", block],
            found.streams.read_maps.get(("mlp", block)),
        )
        for block in found.layers
        if block >= first_block and kept.masks["neurons", block].any()
    ]


def _layers(donor: Model, kept: Components, host: Model, shallow: ShallowModel | None, first: int) -> dict[int, int]:
    """The host's blocks by the donor's blocks that have components: the arrangement's, or one after another from `first` on.

    Raises: StitchError for an empty circuit; UsageError when the host has too few blocks.
    """
    blocks = kept.blocks() if shallow is None else list(shallow.arrangement.layers)
    if not blocks:
        raise StitchError("the circuit must have a head or a neuron to be written; it has none: choose another.")
    if shallow is not None:
        return shallow.arrangement.layers
    if len(blocks) > host.depth:
        raise UsageError(
            f"the circuit is in {len(blocks)} blocks of {donor.name}, one after another; {host.name} has {host.depth}: choose a "
            "deeper host."
        )
    return {block: number for number, block in enumerate(blocks, first)}
