"""What a graft will write, and where: channels, layers, heads and neurons, each with what is lost. Nothing is written yet."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stitch.circuits.behaviours import Prompts
from stitch.circuits.components import Components, Place, replaced
from stitch.circuits.shallow import Arrangement, ShallowModel
from stitch.errors import StitchError, UsageError
from stitch.grafts import heads
from stitch.grafts.allocation import FreeSpace
from stitch.grafts.constants import EMBEDDING, constants_of, needs_lane, spares_for
from stitch.grafts.frame import Frame, frame_for
from stitch.grafts.norm_inputs import Spot, input_length, norm_inputs
from stitch.grafts.placing import PlacedHead, PlacedNeurons, place_head, place_neurons
from stitch.grafts.positions import PositionScheme
from stitch.internals import weights
from stitch.internals.positions import position_codes
from stitch.models.model import Model

PROMPTS_READ = 16  # that maps are fitted and scales are calibrated on


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
    reads at the host's spots on the prompts `ids`. `output` is for trained hosts. `arrangement` is how the donor stands in fewer
    blocks, then `first` is how much longer the lanes of BOS are, which its stream would drown.
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
    arrangement: Arrangement | None = None
    first: float = 1.0

    def described(self) -> dict:
        """Numbers, no weights."""
        return {
            "channels": len(self.frame.lanes),
            "stream_kept": self.frame.kept,
            "layers": {str(block): host for block, host in self.layers.items()},
            "arrangement": None if self.arrangement is None else self.arrangement.to_dict(),
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
    space: FreeSpace,
    channels: int | None = None,
    shallow: ShallowModel | None = None,
) -> Plan:
    """How the components `kept` of the donor, all others giving `constants`, go into the free room of the host, in at most so
    many `channels`; arranged as in `shallow`, or in their own blocks.

    Raises: UsageError when they do not fit; StitchError for induction without a head that looks one token back, if the host's
    positions work in another way.
    """
    first = 0 if shallow is None else shallow.arrangement.first
    used = kept.blocks() if shallow is None else list(shallow.arrangement.layers)
    ids = of.clean[:PROMPTS_READ]
    if not used:
        raise StitchError("the circuit must have a head or a neuron to be written; it has none.")
    if shallow is None and len(used) > host.depth:
        raise UsageError(
            f"the circuit is in {len(used)} blocks of {donor.name}, one after another; {host.name} has {host.depth}: choose a "
            "deeper host."
        )
    if ids.shape[1] > host.longest:
        raise UsageError(f"{behaviour} needs a context of {ids.shape[1]} tokens; {host.name} takes {host.longest}.")
    layers = {block: number for number, block in enumerate(used)} if shallow is None else shallow.arrangement.layers
    scheme, table = PositionScheme.of(donor, host), weights.positions(donor)
    own = None if table is None else table[: ids.shape[1]].double()
    less = own - own.mean(0) if own is not None and scheme.loses_positions else None
    spots: list[Spot] = [(stage, block) for block in used for stage in ("attention", "mlp")] + [("final", 0)]
    if shallow is None:
        with replaced(donor, kept, constants):
            found = norm_inputs(donor, spots, ids)
    else:
        found = shallow.streams(ids)
    without = {spot: weights.norm(donor, *spot).direction(x if less is None else x - less) for spot, x in found.items()}
    long = {spot: input_length(donor, spot, x) for spot, x in found.items()}
    reads = {} if shallow is None else shallow.reads

    def read(spot: Spot) -> Tensor:
        direction = weights.norm(donor, *spot).direction(found[spot])
        return reads[spot].of(direction) if spot in reads else direction

    placed = []
    for block in used:
        x, x_without = read(("attention", block)), without["attention", block]
        for number in kept.masks["heads", block].nonzero()[:, 0].tolist():
            placed.append(
                place_head(
                    donor,
                    (block, number),
                    host,
                    layers[block],
                    space,
                    scheme,
                    x,
                    x_without,
                    reads.get(("attention", block)),
                )
            )
    if behaviour == "induction" and not scheme.alike:
        _require_previous_token(donor, placed)
    inner = [
        place_neurons(
            donor,
            block,
            kept.masks["neurons", block],
            host,
            layers[block],
            space,
            without["mlp", block],
            reads.get(("mlp", block)),
        )
        for block in used
        if block >= first and kept.masks["neurons", block].any()
    ]
    values_biased = weights.attention(host, 0).v_bias is not None
    fixed = constants_of(donor, kept, constants, layers, placed, inner, values_biased, first)
    table_of_tokens = (
        donor.embedding.weight.detach() if shallow is None else shallow.tables.before[first][shallow.tables.rows]
    )
    embedding = table_of_tokens.double().cpu() + fixed.pop(EMBEDDING)
    final = weights.norm(donor, "final")
    gain = final.gain.double().cpu()
    unembedding = gain[:, None] * weights.unembedding(donor).double().cpu()
    shift = (
        torch.zeros_like(gain) if final.bias is None else final.bias.double().cpu() / gain.where(gain != 0, torch.inf)
    )
    if (last := reads.get(("final", 0))) is not None:
        weight = last.weight.double().cpu()
        shift = (shift + last.shift.double().cpu()) @ torch.linalg.pinv(weight, rtol=1e-3)
        unembedding = weight @ unembedding
    constant = needs_lane(host, placed, inner, fixed, shift)
    # Lanes of BOS have a length of their own, so those of the others are chosen for the others.
    usual = long if shallow is None else {spot: one[:, 1:] for spot, one in long.items()}
    frame = frame_for(
        donor, host, space, scheme, placed, inner, unembedding, constant, without, usual, channels, shallow is not None
    )
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
        spares=spares_for(host, fixed, space),
        shift=shift,
        unembedding=unembedding,
        ids=ids,
        targets={(stage, 0 if stage == "final" else layers[block]): found for (stage, block), found in without.items()},
        arrangement=None if shallow is None else shallow.arrangement,
        first=1.0 if shallow is None else _first(long),
    )


def _first(long: Mapping[Spot, Tensor]) -> float:
    """How much longer the first token's stream is than others', where heads read it."""
    found = [float(one[:, 0].mean() / one[:, 1:].mean()) for (stage, _), one in long.items() if stage == "attention"]
    return max(float(torch.tensor(found).median()), 1.0)


def _require_previous_token(donor: Model, placed: list[PlacedHead]) -> None:
    if any(head.back[1] >= heads.LOOKED_AT for head in placed):
        return
    shares = ", ".join(f"{head.block}.{head.number}: {head.back[1]:.0%}" for head in placed)
    raise StitchError(
        f"induction in another architecture needs a head that looks 1 token back at least {heads.LOOKED_AT:.0%} of the time; "
        f"those of {donor.name}'s circuit do {shares}: it copies by position. Choose a host whose positions work as the "
        "donor's, which takes all of it; or as donor what `stitch compile induction --tokenizer "
        f"{donor.name} --out FOLDER` writes, which has such a head."
    )
