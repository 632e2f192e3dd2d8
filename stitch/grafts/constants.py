"""What a circuit writes to the stream for every token: biases and the mean outputs of left-out components. Placed in a host."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from stitch.circuits.components import Components, Place
from stitch.grafts import constant_neurons
from stitch.grafts.allocation import FreeSpace
from stitch.grafts.placing import PlacedCircuit
from stitch.grafts.written_positions import PlacedPositions
from stitch.internals import weights
from stitch.internals.weights import Spot
from stitch.models.model import Model

EMBEDDING: Spot = ("embedding", 0)


def constants_of(
    donor: Model,
    kept: Components,
    means: Mapping[Place, Tensor],
    layers: dict[int, int],
    placed: PlacedCircuit,
    first: int,
    *,
    values_are_biased: bool,
) -> dict[Spot, Tensor]:
    """The vectors that the donor writes for every token from its block `first` on, by the spot of the host where they are added.

    That is the last spot at which the host does not lag behind the donor; `layers` are the host's blocks by the donor's. Biases
    of values are left out if the host has such biases (`values_are_biased`). Heads of blocks before `first` write what differs
    from their mean.
    """
    totals = {EMBEDDING: torch.zeros(donor.width, dtype=torch.float64)}
    spot = EMBEDDING

    def add(value: Tensor | None) -> None:
        if value is not None:
            totals[spot] = totals.get(spot, 0) + value.double().cpu()

    for block in range(first, donor.depth):
        attention, mlp = weights.attention(donor, block), weights.mlp(donor, block)
        spot = ("attention", layers[block]) if block in layers else spot
        for output in _left_out_heads(donor, kept, means, block):
            add(output)
        add(attention.o_bias)
        spot = ("mlp", layers[block]) if block in layers else spot
        left_out = ~kept.masks["neurons", block]
        add(means["neurons", block][0, 0].double().cpu()[left_out] @ mlp.down.double().cpu()[left_out])
        add(mlp.down_bias)
        for neurons in placed.neurons:
            if neurons.block == block:
                add(neurons.maps.constant)
    for head in placed.heads:
        spot = ("attention", head.host_block)
        add(None if values_are_biased else head.maps.v_bias @ head.maps.o)
        if head.block < first:
            projection = weights.attention(donor, head.block).o[head.number].double().cpu()
            mean = means["heads", head.block][0, 0].double().cpu().view(donor.heads(head.block), -1)[head.number]
            add(-mean @ projection)
    return totals


def _left_out_heads(donor: Model, kept: Components, means: Mapping[Place, Tensor], block: int) -> Iterator[Tensor]:
    """The mean of what each head of a block writes that is not kept."""
    mask, projections = kept.masks["heads", block], weights.attention(donor, block).o
    for number, output in enumerate(means["heads", block][0, 0].double().cpu().view(len(mask), -1)):
        if not mask[number]:
            yield output @ projections[number].double().cpu()


def needs_constant_lane(
    host: Model,
    placed: PlacedCircuit,
    constants: Mapping[Spot, Tensor],
    shift: Tensor,
    positions: PlacedPositions | None,
) -> bool:
    """Whether the circuit has a bias or a constant that is not zero and that the host has no parameter for."""
    attention, mlp = weights.attention(host, 0), weights.mlp(host, 0)
    needed = [] if weights.norm(host, "final").bias is not None else [shift]
    if attention.q_bias is None:
        if positions is not None and positions.blocks:
            return True
        needed += [bias for head in placed.heads for bias in (head.maps.q_bias, head.maps.k_bias)]
    if mlp.up_bias is None:
        needed += [
            bias for each in placed.neurons for bias in (each.maps.gate_bias, each.maps.up_bias) if bias is not None
        ]
    needed += [constants[spot] for spot in constants if _lacks_bias(host, spot)]
    return any(bool(value.any()) for value in needed)


def _lacks_bias(host: Model, spot: Spot) -> bool:
    """Whether what is written at this kind of spot has no bias in the host."""
    return (weights.attention(host, 0).o_bias if spot[0] == "attention" else weights.mlp(host, 0).down_bias) is None


def heads_for(
    host: Model, constants: Mapping[Spot, Tensor], space: FreeSpace, reserved: Mapping[int, int]
) -> dict[int, int]:
    """Takes a key head in every block whose attention has to write a constant and has no bias for it, if one is free beside the
    `reserved` ones. Returns their numbers by block."""
    found = {}
    for block in _without_bias(host, {spot: value for spot, value in constants.items() if spot[0] == "attention"}):
        key_heads = weights.attention(host, block).k.shape[1]
        if space.groups_left(block, key_heads) > reserved.get(block, 0):
            found[block] = space.take_group(block, key_heads)
    return found


def neurons_for(
    host: Model, constants: Mapping[Spot, Tensor], space: FreeSpace, heads: Mapping[int, int], *, alone: bool
) -> dict[int, range]:
    """Takes neurons in every block that has to write a constant and has neither a bias nor one of the `heads` for it. Returns
    their numbers by block. If circuits are planned after this one (not `alone`), one neuron each."""
    rest = {spot: value for spot, value in constants.items() if spot[0] == "mlp" or spot[1] not in heads}
    return {
        block: constant_neurons.take(
            space, block, weights.mlp(host, block).up.shape[1], most=len(constant_neurons.SLOPES) if alone else 1
        )
        for block in _without_bias(host, rest)
    }


def _without_bias(host: Model, constants: Mapping[Spot, Tensor]) -> list[int]:
    """The blocks that have to write one of these constants and have no bias for it."""
    return sorted({spot[1] for spot, value in constants.items() if value.any() and _lacks_bias(host, spot)})
