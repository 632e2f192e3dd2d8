"""Plans for trained hosts: the circuit is written beside the host's stream, and its output is added to the host's logits."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from stitch.circuits.components import Components, Place
from stitch.grafts.allocation import FreeSpace
from stitch.grafts.frame import whole
from stitch.grafts.norm_inputs import input_lengths
from stitch.grafts.plan import OutputLanes, Plan
from stitch.internals import weights
from stitch.internals.weights import Spot
from stitch.models.model import Model

FAINT = 0.02  # length of all lanes together, relative to the host's stream where that is shortest


def beside_trained_stream(
    plan: Plan,
    donor: Model,
    kept: Components,
    means: Mapping[Place, Tensor],
    host: Model,
    space: FreeSpace,
    strength: float,
) -> Plan:
    """The plan with lanes so faint that the host's norms hardly change, and with additional lanes for the circuit's output.

    The circuit's last block also writes to the output lanes, less its mean on corrupt prompts. The host's head reads them as the
    donor's reads its stream, so its logits change by `strength` times what the circuit adds to the donor's.
    Raises: UsageError when too few channels are free.
    """
    frame = plan.frame
    donor_lengths = input_lengths(donor, weights.norm_spots(range(donor.depth)), plan.ids)
    host_lengths = input_lengths(host, [("attention", 0), ("final", 0)], plan.ids)
    longest = max(float(each.square().mean()) for each in donor_lengths.values()) + frame.length**2 / host.width
    faint = FAINT * (float(host_lengths["attention", 0].square().mean()) / longest) ** 0.5
    write, read = whole(space.take_channels(donor.width), weights.norm(donor, "final").centred)
    norms = float(host_lengths["final", 0].mean()) / float(donor_lengths["final", 0].mean())
    faint_frame = replace(
        frame, write=faint * frame.write, read=frame.read / faint, length=faint * frame.length,
        bos=None if frame.bos is None else faint * frame.bos,
    )  # fmt: skip
    usual = _mean_output(donor, kept, means, *max(plan.layers.items()))
    return replace(plan, frame=faint_frame, output=OutputLanes(faint * write, strength * norms / faint * read, usual))


def _mean_output(
    donor: Model, kept: Components, means: Mapping[Place, Tensor], block: int, host_block: int
) -> dict[Spot, Tensor]:
    """The mean of what the circuit's heads and neurons in a block of the donor write, by spot of the host."""
    attention, mlp = weights.attention(donor, block), weights.mlp(donor, block)
    heads, neurons = kept.masks["heads", block], kept.masks["neurons", block]
    of_heads = means["heads", block][0, 0].double().cpu().view(len(heads), -1)[heads]
    of_neurons = means["neurons", block][0, 0].double().cpu()[neurons]
    return {
        ("attention", host_block): torch.einsum("hd,hdm->m", of_heads, attention.o.double().cpu()[heads]),
        ("mlp", host_block): of_neurons @ mlp.down.double().cpu()[neurons],
    }
