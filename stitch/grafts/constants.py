"""What a circuit writes whatever the tokens: biases, and the mean output of all that was left out. Where it goes in a host."""

from collections.abc import Mapping

import torch
from torch import Tensor

from stitch.circuits.components import Components, Place
from stitch.grafts.allocation import FreeSpace
from stitch.grafts.norm_inputs import Spot
from stitch.grafts.placing import PlacedHead, PlacedNeurons
from stitch.internals import weights
from stitch.models.model import Model

EMBEDDING: Spot = ("embedding", 0)


def constants_of(
    donor: Model,
    kept: Components,
    means: Mapping[Place, Tensor],
    layers: dict[int, int],
    placed: list[PlacedHead],
    inner: list[PlacedNeurons],
    values_biased: bool,
    first: int,
) -> dict[Spot, Tensor]:
    """What the donor writes in any case from its block `first` on, each at the last spot of the host that isn't after it; without
    biases of values where the host has some itself. Heads of earlier blocks write what differs from their mean."""
    at = EMBEDDING
    found = {at: torch.zeros(donor.width, dtype=torch.float64)}

    def add(value: Tensor | None) -> None:
        if value is not None:
            found[at] = found.get(at, 0) + value.double().cpu()

    for block in range(first, donor.depth):
        attention, mlp = weights.attention(donor, block), weights.mlp(donor, block)
        at = ("attention", layers[block]) if block in layers else at
        mask = kept.masks["heads", block]
        for number, output in enumerate(means["heads", block][0, 0].double().cpu().view(len(mask), -1)):
            if mask[number]:
                continue  # written by the head itself, or as a constant below
            add(output @ attention.o[number].double().cpu())
        add(attention.o_bias)
        at = ("mlp", layers[block]) if block in layers else at
        others = ~kept.masks["neurons", block]
        add(means["neurons", block][0, 0].double().cpu()[others] @ mlp.down.double().cpu()[others])
        add(mlp.down_bias)
        for one in inner:
            if one.block == block:
                add(one.maps.constant)
    for head in placed:
        at = ("attention", head.host_block)
        add(None if values_biased else head.maps.v_bias @ head.maps.o)
        if head.block < first:
            own = weights.attention(donor, head.block).o[head.number].double().cpu()
            mean = means["heads", head.block][0, 0].double().cpu().view(donor.heads(head.block), -1)[head.number]
            add(-mean @ own)
    return found


def needs_lane(
    host: Model, placed: list[PlacedHead], inner: list[PlacedNeurons], constants: Mapping[Spot, Tensor], shift: Tensor
) -> bool:
    """Whether something that the host has no bias for must be the same for all tokens."""
    attention, mlp = weights.attention(host, 0), weights.mlp(host, 0)
    needed = [] if weights.norm(host, "final").bias is not None else [shift]
    if attention.q_bias is None:
        needed += [bias for head in placed for bias in (head.maps.q_bias, head.maps.k_bias)]
    if mlp.up_bias is None:
        needed += [bias for one in inner for bias in (one.maps.gate_bias, one.maps.up_bias) if bias is not None]
    needed += [constants[spot] for spot in constants if _without_bias(host, spot)]
    return any(bool(value.any()) for value in needed)


def _without_bias(host: Model, spot: Spot) -> bool:
    """Nothing there can write a constant by itself."""
    return (weights.attention(host, 0).o_bias if spot[0] == "attention" else weights.mlp(host, 0).down_bias) is None


def spares_for(host: Model, constants: Mapping[Spot, Tensor], space: FreeSpace) -> dict[int, int]:
    """A neuron of every block that has to write a constant and has no bias for it."""
    blocks = sorted({spot[1] for spot, value in constants.items() if value.any() and _without_bias(host, spot)})
    return {block: space.take_neurons(block, 1, weights.mlp(host, block).up.shape[1]) for block in blocks}
