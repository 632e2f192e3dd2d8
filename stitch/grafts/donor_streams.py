"""What the norms of a donor read on some prompts, and what of that its circuit will find in a host."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float, Int64
from torch import Tensor

from stitch.circuits.components import Components, Place, replaced
from stitch.circuits.reads import ReadMap
from stitch.circuits.shallow import ShallowModel
from stitch.grafts.norm_inputs import input_length, norm_inputs
from stitch.internals import weights
from stitch.internals.weights import Spot
from stitch.models.model import Model


@dataclass(frozen=True)
class DonorStreams:
    """What the donor's norms read on some prompts, by spot of the donor.

    `normalised` is the stream after the norms in front of attention, as the heads read it. `in_host` is the stream after all
    norms as the host will have it: without what is lost of positions, and before the `read_maps`, which become part of the
    components' maps. `lengths` are root mean squares.
    """

    normalised: dict[Spot, Float[Tensor, "prompts length d"]]
    in_host: dict[Spot, Float[Tensor, "prompts length d"]]
    lengths: dict[Spot, Float[Tensor, "prompts length"]]
    read_maps: Mapping[Spot, ReadMap]


def donor_streams(
    donor: Model,
    kept: Components,
    means: Mapping[Place, Tensor],
    ids: Int64[Tensor, "prompts length"],
    blocks: list[int],
    lost_positions: Float[Tensor, "length d"] | None,
    shallow: ShallowModel | None,
) -> DonorStreams:
    """The streams at all norms of these blocks and at the final norm, with only the circuit running."""
    if shallow is None:
        with replaced(donor, kept, means):
            inputs = norm_inputs(donor, weights.norm_spots(blocks), ids)
    else:
        inputs = shallow.streams(ids)
    read_maps = {} if shallow is None else shallow.reads

    def normalised(spot: Spot) -> Tensor:
        direction = weights.norm(donor, *spot).direction(inputs[spot])
        return read_maps[spot].apply(direction) if spot in read_maps else direction

    return DonorStreams(
        normalised={spot: normalised(spot) for spot in inputs if spot[0] == "attention"},
        in_host={
            spot: weights.norm(donor, *spot).direction(x if lost_positions is None else x - lost_positions)
            for spot, x in inputs.items()
        },
        lengths={spot: input_length(donor, spot, x) for spot, x in inputs.items()},
        read_maps=read_maps,
    )
