"""What circuits take of a host: upper bounds, by which trained hosts are widened and key heads are left to later circuits."""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence

from stitch.circuits.find import ChosenCircuit
from stitch.grafts.constant_neurons import SLOPES
from stitch.grafts.neurons import units
from stitch.grafts.position_heads import HEADS
from stitch.grafts.positions import CODE_PLANES, PositionScheme
from stitch.internals import weights
from stitch.models.model import Model


def key_heads_of(donors: Sequence[Model], circuits: Sequence[ChosenCircuit], host: Model) -> Counter[int]:
    """Upper bounds for the key heads that circuits take, by block of the host."""
    found: Counter[int] = Counter()
    for donor, chosen in zip(donors, circuits, strict=True):
        for place, block in _places(donor, chosen, host):
            found[place] += int(chosen.kept.masks["heads", block].sum())
    return found


def _places(donor: Model, chosen: ChosenCircuit, host: Model) -> Iterator[tuple[int, int]]:
    """Blocks of the host that a circuit may take, each with the donor's: two for one if positions may be written before it."""
    blocks = (
        dict(zip(chosen.kept.blocks(), itertools.count()))
        if chosen.shallow is None
        else chosen.shallow.arrangement.layers
    )
    later = chosen.shallow is None and PositionScheme.of(donor, host).loses_positions
    for block, place in blocks.items():
        for one in range(place, place + 1 + later):
            yield one, block


def needed(
    donors: Sequence[Model], circuits: Sequence[ChosenCircuit], host: Model, channels: int | None
) -> dict[str, int]:
    """Upper bounds for the channels, and the key heads and neurons of every block, that circuits take of a trained host."""
    neurons: Counter[int] = Counter()
    heads, attention = key_heads_of(donors, circuits, host), weights.attention(host, 0)
    for donor, chosen in zip(donors, circuits, strict=True):
        if PositionScheme.of(donor, host).loses_positions:
            heads[0] += -(-HEADS // attention.shared)
        for place, block in _places(donor, chosen, host):
            per_neuron = units(weights.mlp(donor, block), weights.mlp(host, 0))
            neurons[place] += per_neuron * int(chosen.kept.masks["neurons", block].sum()) + len(SLOPES)
            heads[place] += attention.o_bias is None  # for a constant
    # The donor's stream, its output, position codes or BOS, and a constant; LayerNorm takes one more channel each of two times.
    width = sum(min(donor.width, channels or donor.width) + donor.width + 2 * CODE_PLANES + 3 for donor in donors)
    return {"channels": width, "groups": max(heads.values(), default=0), "neurons": max(neurons.values(), default=0)}
