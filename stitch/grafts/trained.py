"""Plans for hosts that have been trained: the circuit lies beside their stream, and what it brings is added to their logits."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from stitch.circuits.components import Components, Place
from stitch.grafts.allocation import FreeSpace
from stitch.grafts.frame import whole
from stitch.grafts.norm_inputs import Spot, input_lengths
from stitch.grafts.plan import Output, Plan
from stitch.internals import weights
from stitch.models.model import Model

FAINT = 0.02  # length of all lanes together, beside the host's stream where that is shortest


def beside_trained_stream(
    plan: Plan,
    donor: Model,
    kept: Components,
    means: Mapping[Place, Tensor],
    host: Model,
    space: FreeSpace,
    strength: float,
) -> Plan:
    """The plan with lanes so faint that the host's norms do not notice them, and with lanes for its output alone.

    What components write goes there as well, less its mean on corrupt prompts. The host's head reads it as the donor's reads its
    stream: its logits change by `strength` times what the circuit does to the donor's.
    """
    frame = plan.frame
    donor_spots: list[Spot] = [(stage, block) for block in range(donor.depth) for stage in ("attention", "mlp")]
    theirs = input_lengths(donor, [*donor_spots, ("final", 0)], plan.ids)
    ours = input_lengths(host, [("attention", 0), ("final", 0)], plan.ids)
    longest = max(float(one.square().mean()) for one in theirs.values()) + frame.length**2 / host.width
    faint = FAINT * (float(ours["attention", 0].square().mean()) / longest) ** 0.5
    write, read = whole(space.take_channels(donor.width), weights.norm(donor, "final").centred)
    norms = float(ours["final", 0].mean()) / float(theirs["final", 0].mean())
    usual: dict[Spot, Tensor] = {}
    for block, host_block in [max(plan.layers.items())]:
        attention, mlp = weights.attention(donor, block), weights.mlp(donor, block)
        heads, neurons = kept.masks["heads", block], kept.masks["neurons", block]
        mean = means["heads", block][0, 0].double().cpu().view(len(heads), -1)
        usual["attention", host_block] = torch.einsum("hd,hdm->m", mean[heads], attention.o.double().cpu()[heads])
        usual["mlp", host_block] = (
            means["neurons", block][0, 0].double().cpu()[neurons] @ mlp.down.double().cpu()[neurons]
        )
    quiet = replace(frame, write=faint * frame.write, read=frame.read / faint, length=faint * frame.length)
    output = Output(faint * write, strength * norms / faint * read, usual)
    return replace(plan, frame=quiet, output=output)
