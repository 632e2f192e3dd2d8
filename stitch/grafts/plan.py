"""Plans a graft without writing anything: channels, layers, heads and neurons in the host, and what each of them loses."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stitch.circuits.behaviours.prompts import Prompts
from stitch.circuits.components import Components, Place
from stitch.circuits.reads import ReadMap
from stitch.circuits.shallow import Arrangement, ShallowModel
from stitch.errors import StitchError, UsageError
from stitch.grafts import heads
from stitch.grafts.allocation import FreeSpace
from stitch.grafts.constants import EMBEDDING, constants_of, heads_for, needs_constant_lane, neurons_for
from stitch.grafts.first_token import first_token, sees_first
from stitch.grafts.frame import Frame, frame_for
from stitch.grafts.placing import PlacedCircuit, PlacedHead, PlacedNeurons, Transfer
from stitch.grafts.placing_circuit import PlacedHeads, place_all_heads, place_all_neurons
from stitch.grafts.positions import PositionScheme
from stitch.grafts.written_positions import PlacedPositions, ways_to_place
from stitch.internals import weights
from stitch.internals.positions import position_codes
from stitch.internals.weights import Spot
from stitch.models.model import Model

PROMPTS_READ = 16  # prompts on which maps are fitted and scales are calibrated


@dataclass(frozen=True)
class OutputLanes:
    """How a circuit adds to the logits of a trained host.

    What its last block writes also goes to the host by `write`, less its mean `usual` at a spot; the host's head reads it by
    `read`.
    """

    write: Float[Tensor, "d_donor d_host"]
    read: Float[Tensor, "d_host d_donor"]
    usual: dict[Spot, Float[Tensor, " d_donor"]]


@dataclass(frozen=True)
class Plan:
    """What will be written into a host. All maps are in the donor's coordinates; `frame` says where these are in the host.

    `layers` are the host's blocks by the donor's. `constants` are written at a spot of the host for every token, in blocks
    without biases by the key heads `constant_heads` and the neurons `spares`. `shift` is added to the output of the final norm.
    `targets` are the donor's normalised streams on the prompts `ids`, by spot of the host. `positions` is the donor's table for
    a host that has learned positions too, `written_positions` what a host with rotary ones gets instead. `output` is set for
    trained hosts. `arrangement` is set if the donor's blocks were rearranged; then BOS has longer lanes than other tokens, by
    the factor `first`, as its stream is longer. `apart` is set beside other donors' circuits: prompts of the behaviour, on which
    this one speaks and the others do not.
    """

    donor: str
    behaviour: str
    frame: Frame
    layers: dict[int, int]
    embedding: Float[Tensor, "vocabulary d"]
    positions: Float[Tensor, "positions d"] | None
    written_positions: PlacedPositions | None
    codes: Float[Tensor, "context columns"] | None
    heads: list[PlacedHead]
    neurons: list[PlacedNeurons]
    constants: dict[Spot, Float[Tensor, " d"]]
    constant_heads: dict[int, int]
    spares: dict[int, range]
    shift: Float[Tensor, " d"]
    unembedding: Float[Tensor, "d vocabulary"]
    ids: Int64[Tensor, "prompts length"]
    targets: dict[Spot, Float[Tensor, "prompts length d"]]
    output: OutputLanes | None = None
    arrangement: Arrangement | None = None
    first: float = 1.0
    apart: Prompts | None = None

    def described(self) -> dict:
        """The plan as the report has it: numbers and no weights."""
        return {
            "channels": len(self.frame.lanes),
            "stream_kept": self.frame.kept,
            "layers": {str(block): host for block, host in self.layers.items()},
            "positions": None if self.written_positions is None else self.written_positions.described(),
            "arrangement": None if self.arrangement is None else self.arrangement.to_dict(),
            "heads": [
                {
                    "donor": [each.block, each.number],
                    "host": [each.host_block, each.host_head],
                    "kind": each.kind,
                    "back": each.back,
                    "moved": each.moved,
                    "lost": each.lost,
                }
                for each in self.heads
            ],
            "neurons": [
                {
                    "donor": each.block,
                    "count": each.count,
                    "host": each.host_block,
                    "as": len(each.maps),
                    "kind": each.kind,
                    "lost": each.lost,
                }
                for each in self.neurons
            ],
        }


def make_plan(
    donor: Model,
    behaviour: str,
    kept: Components,
    means: Mapping[Place, Tensor],
    prompts: Prompts,
    host: Model,
    space: FreeSpace,
    channels: int | None = None,
    shallow: ShallowModel | None = None,
    beside_others: bool = False,
    reserved: Mapping[int, int] | None = None,
) -> Plan:
    """Plans how the components `kept` of the donor go into the free space of the host, all others giving their `means`.

    The donor's stream gets at most `channels` channels. `shallow` is the donor rearranged into fewer blocks, if it has to be.
    `beside_others`: the host gets other donors' circuits too. `reserved` key heads, by block of the host, are left to circuits
    that are planned later.
    Raises: UsageError when the circuit does not fit into the host; StitchError for an empty circuit, and for induction without a
    head that attends one token back if positions work differently in the host.
    """
    ids, reserved = prompts.clean[:PROMPTS_READ], reserved or {}
    if ids.shape[1] > host.longest:
        raise UsageError(
            f"{behaviour} needs a context of {ids.shape[1]} tokens; {host.name} takes {host.longest}: choose another host."
        )
    transfer = Transfer(donor, host, space, PositionScheme.of(donor, host))
    # Where channels are scarce, BOS and positions would take some from what the circuit reads.
    is_whole = min(channels or donor.width, space.free - 2) >= donor.width
    bos = None if shallow is not None else first_token(prompts)
    ways = ways_to_place(
        transfer, bos, ids.shape[1], heads_fit=is_whole and len(kept.blocks()) < host.depth, reserved=reserved.get(0, 0)
    )
    first_block = 0 if shallow is None else shallow.arrangement.first

    def placed_with(way: PlacedPositions | None, space: FreeSpace) -> tuple[PlacedHeads, list[PlacedNeurons]]:
        there = replace(transfer, space=space)
        found = place_all_heads(there, kept, means, ids, way, shallow)
        return found, place_all_neurons(there, kept, found, first_block)

    def attention_moved(way: PlacedPositions | None) -> float:
        try:
            return sum(head.moved for head in placed_with(way, copy.deepcopy(space))[0].heads)
        except UsageError:  # it does not fit
            return math.inf

    positions = ways[0] if len(ways) == 1 else min(ways, key=attention_moved)
    found, neurons = placed_with(positions, space)
    placed, layers, streams = PlacedCircuit(found.heads, neurons), found.layers, found.streams
    if behaviour == "induction" and not transfer.scheme.alike:
        _require_previous_token_head(donor, placed.heads)
    values_are_biased = weights.attention(host, 0).v_bias is not None
    constants = constants_of(donor, kept, means, layers, placed, first_block, values_are_biased=values_are_biased)
    embedding = _embedding(donor, shallow) + constants.pop(EMBEDDING)
    has_bos = bos is not None and is_whole and sees_first(host)
    written = heads_for(host, constants, space, reserved) if has_bos else {}
    if positions is not None:
        embedding = positions.added_to(embedding)
    shift, unembedding = _final_maps(donor, streams.read_maps.get(("final", 0)))
    frame = frame_for(
        transfer,
        placed,
        unembedding,
        streams.in_host,
        # BOS has lanes of its own length if blocks are rearranged, so the lanes of the others suit the others.
        streams.lengths if shallow is None else {spot: each[:, 1:] for spot, each in streams.lengths.items()},
        has_constant=beside_others or needs_constant_lane(host, placed, constants, shift, positions),
        has_bos=bool(written) or (positions is not None and positions.blocks > 0),
        channels=channels,
        dominant=shallow is not None,
        beside_others=beside_others,
    )
    table = weights.positions(donor)
    return Plan(
        donor=donor.name,
        behaviour=behaviour,
        frame=frame,
        layers=layers,
        embedding=embedding,
        positions=table.double().cpu() if table is not None and transfer.scheme.alike else None,
        written_positions=positions,
        codes=None if frame.codes is None else position_codes(transfer.scheme.code_frequencies, host.longest),
        heads=placed.heads,
        neurons=placed.neurons,
        constants=constants,
        constant_heads=written,
        spares=neurons_for(host, constants, space, written, alone=not reserved),
        shift=shift,
        unembedding=unembedding,
        ids=ids,
        targets={(stage, 0 if stage == "final" else layers[block]): x for (stage, block), x in streams.in_host.items()},
        arrangement=None if shallow is None else shallow.arrangement,
        first=1.0 if shallow is None else _length_of_first(streams.lengths),
        apart=prompts if beside_others else None,
    )


def _embedding(donor: Model, shallow: ShallowModel | None) -> Float[Tensor, "vocabulary d"]:
    """The donor's embedding, or the token table of the first block of its arrangement."""
    if shallow is None:
        return donor.embedding.weight.detach().double().cpu()
    return shallow.tables.before[shallow.arrangement.first][shallow.tables.rows].double().cpu()


def _final_maps(donor: Model, read_map: ReadMap | None) -> tuple[Float[Tensor, " d"], Float[Tensor, "d vocabulary"]]:
    """(shift, unembedding): the logits are (normalised stream + shift) @ unembedding, with the final norm's gain and bias and the
    `read_map` folded in."""
    final = weights.norm(donor, "final")
    gain = final.gain.double().cpu()
    unembedding = gain[:, None] * weights.unembedding(donor).double().cpu()
    shift = (
        torch.zeros_like(gain) if final.bias is None else final.bias.double().cpu() / gain.where(gain != 0, torch.inf)
    )
    if read_map is None:
        return shift, unembedding
    weight = read_map.weight.double().cpu()
    return (shift + read_map.shift.double().cpu()) @ torch.linalg.pinv(weight, rtol=1e-3), weight @ unembedding


def _length_of_first(lengths: Mapping[Spot, Tensor]) -> float:
    """By what factor the first token's stream is longer than the others', where heads read it: the median, at least 1."""
    ratios = [
        float(each[:, 0].mean() / each[:, 1:].mean()) for (stage, _), each in lengths.items() if stage == "attention"
    ]
    return max(float(torch.tensor(ratios).median()), 1.0)


def _require_previous_token_head(donor: Model, placed: list[PlacedHead]) -> None:
    """Raises StitchError unless a head attends one token back often enough to be constructed anew."""
    if any(head.back[1] >= heads.LOOKED_AT for head in placed):
        return
    shares = ", ".join(f"{head.block}.{head.number} at {head.back[1]:.0%}" for head in placed)
    raise StitchError(
        f"induction needs a head that attends 1 token back at least {heads.LOOKED_AT:.0%} of the time if the host's positions "
        f"work differently; the circuit of {donor.name} has {shares}: choose a host whose positions work as the donor's, or as "
        "donor an induction model compiled for its tokenizer (compile_induction), which has such a head."
    )
