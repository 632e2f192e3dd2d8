"""What a graft will write, and where: channels, layers, heads and neurons, each with what is lost. Nothing is written yet."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stitch.circuits import weights
from stitch.circuits.components import Components, Place, replaced
from stitch.circuits.positions import position_codes
from stitch.circuits.spec import Prompts
from stitch.errors import StitchError, UsageError
from stitch.grafts import heads
from stitch.grafts.frame import Frame, narrowed, whole
from stitch.grafts.placing import PlacedHead, PlacedNeurons, of_donor, place_head, place_neurons
from stitch.grafts.room import Room
from stitch.grafts.scheme import Scheme
from stitch.grafts.streams import Spot, directions, lengths
from stitch.models import Model

PROMPTS_READ = 16  # that maps are fitted and scales are calibrated on
SLIGHT = 0.05  # of the stream's mean square, in a constant lane that only stands in for biases
EMBEDDING: Spot = ("embedding", 0)


@dataclass(frozen=True)
class Output:
    """How a circuit adds to the logits of a trained host: what its components write goes to the host by `write` too, less what is
    `usual` at a spot, and its head reads it by `read`."""

    write: Float[Tensor, "d_donor d_host"]
    read: Float[Tensor, "d_host d_donor"]
    usual: dict[Spot, Float[Tensor, " d_donor"]]


@dataclass(frozen=True)
class Plan:
    """Everything is in the donor's coordinates; `frame` says where they are in the host.

    `layers` are the host's blocks by the donor's. `constants` are written at a spot of the host whatever the tokens; by
    `spares`, neurons of hosts that have no biases. `shift` is added to what the final norm gives. `targets`: what the donor
    reads at the host's spots on the prompts `ids`. `output` is for trained hosts.
    """

    donor: str
    behaviour: str
    frame: Frame
    layers: dict[int, int]
    embedding: Float[Tensor, "vocabulary d"]
    positions: Float[Tensor, "positions d"] | None
    codes: Float[Tensor, "context columns"] | None
    heads: list[PlacedHead]
    neurons: list[PlacedNeurons]
    constants: dict[Spot, Float[Tensor, " d"]]
    spares: dict[int, int]
    shift: Float[Tensor, " d"]
    unembedding: Float[Tensor, "d vocabulary"]
    ids: Int64[Tensor, "prompts length"]
    targets: dict[Spot, Float[Tensor, "prompts length d"]]
    output: Output | None = None

    def described(self) -> dict:
        """Numbers, no weights."""
        return {
            "channels": len(self.frame.lanes),
            "stream_kept": self.frame.kept,
            "layers": {str(block): host for block, host in self.layers.items()},
            "heads": [
                {
                    "donor": [one.block, one.number],
                    "host": [one.host_block, one.host_head],
                    "kind": one.kind,
                    "back": one.back,
                    "moved": one.moved,
                    "lost": one.lost,
                }
                for one in self.heads
            ],
            "neurons": [
                {
                    "donor": one.block,
                    "count": one.count,
                    "host": one.host_block,
                    "as": len(one.maps),
                    "kind": one.kind,
                    "lost": one.lost,
                }
                for one in self.neurons
            ],
        }


def make_plan(
    donor: Model,
    behaviour: str,
    kept: Components,
    constants: Mapping[Place, Tensor],
    of: Prompts,
    host: Model,
    room: Room,
    channels: int | None = None,
) -> Plan:
    """How the components `kept` of the donor, all others giving `constants`, go into the free room of the host, in at most so
    many `channels`.

    Raises: UsageError when they do not fit; StitchError for induction without a head that looks one token back, if the host's
    positions work in another way.
    """
    used = [
        block for block in range(donor.depth) if any(kept.masks[kind, block].any() for kind in ("heads", "neurons"))
    ]
    ids = of.clean[:PROMPTS_READ]
    if not used:
        raise StitchError("the circuit must have a head or a neuron to be written; it has none.")
    if len(used) > host.depth:
        raise UsageError(
            f"the circuit is in {len(used)} blocks of {donor.name}, one after another; {host.name} has {host.depth}: choose a "
            "deeper host."
        )
    if ids.shape[1] > host.longest:
        raise UsageError(f"{behaviour} needs a context of {ids.shape[1]} tokens; {host.name} takes {host.longest}.")
    layers = {block: number for number, block in enumerate(used)}
    scheme, table = Scheme.of(donor, host), weights.positions(donor)
    own = None if table is None else table[: ids.shape[1]].double()
    less = own - own.mean(0) if own is not None and scheme.loses_positions else None
    spots: list[Spot] = [(stage, block) for block in used for stage in ("attention", "mlp")] + [("final", 0)]
    with replaced(donor, kept, constants):
        read, without = directions(donor, spots, ids), directions(donor, spots, ids, less)
        long = lengths(donor, spots, ids)

    placed = []
    for block in used:
        x, x_without = read["attention", block], without["attention", block]
        for number in kept.masks["heads", block].nonzero()[:, 0].tolist():
            placed.append(place_head(donor, (block, number), host, layers[block], room, scheme, x, x_without))
    if behaviour == "induction" and not scheme.alike:
        _require_previous_token(donor, placed)
    inner = [
        place_neurons(donor, block, kept.masks["neurons", block], host, layers[block], room, without["mlp", block])
        for block in used
        if kept.masks["neurons", block].any()
    ]
    values_biased = weights.attention(host, 0).v_bias is not None
    fixed = _constants(donor, kept, constants, layers, inner, values_biased)
    embedding = donor.embedding.weight.detach().double().cpu() + fixed.pop(EMBEDDING)
    final = weights.norm(donor, "final")
    gain = final.gain.double().cpu()
    unembedding = gain[:, None] * weights.unembedding(donor).double().cpu()
    shift = (
        torch.zeros_like(gain) if final.bias is None else final.bias.double().cpu() / gain.where(gain != 0, torch.inf)
    )
    constant = _needs_constant(host, placed, inner, fixed, shift)
    frame = _frame(donor, host, room, scheme, placed, inner, unembedding, constant, without, long, channels)
    return Plan(
        donor=donor.name,
        behaviour=behaviour,
        frame=frame,
        layers=layers,
        embedding=embedding if less is None or own is None else embedding + own.mean(0).cpu(),
        positions=table.double().cpu() if table is not None and scheme.alike else None,
        codes=None if frame.codes is None else position_codes(scheme.code_frequencies, host.longest),
        heads=placed,
        neurons=inner,
        constants=fixed,
        spares=_spares(host, fixed, room),
        shift=shift,
        unembedding=unembedding,
        ids=ids,
        targets={(stage, layers.get(block, 0)): found for (stage, block), found in without.items()},
    )


def _constants(
    donor: Model,
    kept: Components,
    means: Mapping[Place, Tensor],
    layers: dict[int, int],
    inner: list[PlacedNeurons],
    values_biased: bool,
) -> dict[Spot, Tensor]:
    """What the donor writes in any case, each at the last spot of the host that isn't after it; without biases of values where
    the host has some itself."""
    at = EMBEDDING
    found = {at: torch.zeros(donor.width, dtype=torch.float64)}

    def add(value: Tensor | None) -> None:
        if value is not None:
            found[at] = found.get(at, 0) + value.double().cpu()

    for block in range(donor.depth):
        attention, mlp = weights.attention(donor, block), weights.mlp(donor, block)
        at = ("attention", layers[block]) if block in layers else at
        mask = kept.masks["heads", block]
        for number, output in enumerate(means["heads", block][0, 0].double().cpu().view(len(mask), -1)):
            if mask[number]:
                head = of_donor(attention, weights.norm(donor, "attention", block), number)
                add(None if values_biased else head.v_bias @ head.o)
            else:
                add(output @ attention.o[number].double().cpu())
        add(attention.o_bias)
        at = ("mlp", layers[block]) if block in layers else at
        others = ~kept.masks["neurons", block]
        add(means["neurons", block][0, 0].double().cpu()[others] @ mlp.down.double().cpu()[others])
        add(mlp.down_bias)
        for placed in inner:
            if placed.block == block:
                add(placed.maps.constant)
    return found


def _frame(
    donor: Model,
    host: Model,
    room: Room,
    scheme: Scheme,
    placed: list[PlacedHead],
    inner: list[PlacedNeurons],
    unembedding: Tensor,
    constant: bool,
    x: Mapping[Spot, Tensor],
    long: Mapping[Spot, Tensor],
    channels: int | None,
) -> Frame:
    offsets = [head for head in placed if head.offset is not None]
    codes = 2 * len(scheme.code_frequencies) if any(head.maps.q_codes is not None for head in placed) else 0
    rank = min(donor.width, room.free - codes - constant, channels or donor.width)
    if rank < 1:
        raise UsageError(f"the graft needs channels; {room.free} of {host.name} are free: choose a wider host.")
    lanes = room.take_channels(rank + codes + constant)
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
        length=_lane_length(scheme, offsets, long) * host.width**0.5,
        kept=kept,
    )


def _lane_length(scheme: Scheme, offsets: list[PlacedHead], long: Mapping[Spot, Tensor]) -> float:
    """Of a constant lane or a code, beside √(mean square) of the stream: little, or so much that norms vary as little as heads
    that read it take."""
    enough = SLIGHT * min(float(one.square().mean()) for one in long.values())
    if offsets and not scheme.by_bias:
        read = torch.cat([long["attention", head.block].flatten() for head in offsets])
        low, high = torch.quantile(read.square(), torch.tensor([0.005, 0.995], dtype=torch.float64)).tolist()
        tolerance = min(head.offset.tolerance for head in offsets if head.offset is not None) ** 2
        enough = max(enough, (high - tolerance * low) / (tolerance - 1))
    return enough**0.5


def _needs_constant(
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


def _spares(host: Model, constants: Mapping[Spot, Tensor], room: Room) -> dict[int, int]:
    """A neuron of every block that has to write a constant and has no bias for it."""
    blocks = sorted({spot[1] for spot, value in constants.items() if value.any() and _without_bias(host, spot)})
    return {block: room.take_neurons(block, 1, weights.mlp(host, block).up.shape[1]) for block in blocks}


def _require_previous_token(donor: Model, placed: list[PlacedHead]) -> None:
    if any(head.back[1] >= heads.LOOKED_AT for head in placed):
        return
    shares = ", ".join(f"{head.block}.{head.number}: {head.back[1]:.0%}" for head in placed)
    raise StitchError(
        f"induction in another architecture needs a head that looks 1 token back at least {heads.LOOKED_AT:.0%} of the time; "
        f"those of {donor.name}'s circuit do {shares}: it copies by position. Choose another donor, or a host whose positions "
        "work as the donor's."
    )
