"""Grafts that should not work: what is left of a behaviour when the circuit is noise, out of order or incomplete."""

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from stitch.grafts.heads import Head
from stitch.grafts.neurons import Neurons
from stitch.grafts.plan import Plan


def randomised(plan: Plan, seed: int) -> Plan:
    """Every map of its heads and neurons is noise of the same norm; embeddings and unembedding stay."""
    generator = torch.Generator().manual_seed(seed)

    def noise(value: Tensor) -> Tensor:
        drawn = torch.randn(value.shape, generator=generator, dtype=value.dtype)
        return drawn * value.norm() / drawn.norm()

    def drawn(maps: Head | Neurons) -> Any:
        values = {one.name: getattr(maps, one.name) for one in fields(maps)}
        return replace(maps, **{name: None if value is None else noise(value) for name, value in values.items()})

    return replace(
        plan,
        heads=[replace(placed, maps=drawn(placed.maps)) for placed in plan.heads],
        neurons=[replace(placed, maps=drawn(placed.maps)) for placed in plan.neurons],
    )


def shuffled(plan: Plan) -> Plan:
    """The blocks of the circuit in the opposite order."""
    blocks = sorted(set(plan.layers.values()))
    other = dict(zip(blocks, reversed(blocks), strict=True))

    def moved(spot: tuple) -> tuple:
        return spot if spot[0] == "final" else (spot[0], other[spot[1]])

    return replace(
        plan,
        heads=[replace(placed, host_block=other[placed.host_block]) for placed in plan.heads],
        neurons=[replace(placed, host_block=other[placed.host_block]) for placed in plan.neurons],
        constants={moved(spot): value for spot, value in plan.constants.items()},
        targets={moved(spot): value for spot, value in plan.targets.items()},
        spares={other[block]: neuron for block, neuron in plan.spares.items()},
    )


def without(plan: Plan, block: int) -> Plan:
    """What is in this block of the host is left out."""
    return replace(
        plan,
        heads=[placed for placed in plan.heads if placed.host_block != block],
        neurons=[placed for placed in plan.neurons if placed.host_block != block],
    )
