"""Heads of a host that several circuits share: each circuit speaks on prompts of its own behaviour and is silent on the others'.

A part of the head maps what the host holds of one donor to logits. Ridge regression changes it so that on prompts of its own
behaviour it gives the circuit's logits, and on prompts of the other behaviours nothing. No answer is looked at.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stitch.circuits.behaviours.prompts import Prompts
from stitch.grafts.norm_inputs import normalised_inputs
from stitch.models.model import Model

RIDGE = 1e-3  # in units of the streams' mean square


@dataclass(frozen=True)
class AskedStreams:
    """The host's normalised stream where prompts of a behaviour ask: its second moment over clean and corrupt prompts, and its
    mean over corrupt ones."""

    moment: Float[Tensor, "d_host d_host"]
    corrupt: Float[Tensor, " d_host"]

    @classmethod
    def of(cls, host: Model, prompts: Prompts) -> "AskedStreams":
        """Those of a host whose head may still be missing."""
        clean, corrupt = (
            normalised_inputs(host, [("final", 0)], ids)["final", 0][prompts.asked]
            for ids in (prompts.clean, prompts.corrupt)
        )
        return cls((clean.T @ clean + corrupt.T @ corrupt) / (2 * len(clean)), corrupt.mean(0))


def among_alone(logits: Float[Tensor, "d_host vocabulary"], prompts: Prompts) -> Float[Tensor, "d_host vocabulary"]:
    """The map with the tokens that compete in a behaviour alone: the circuit was chosen for what it says of these."""
    if not prompts.among:
        return logits
    found = torch.zeros_like(logits)
    found[:, list(prompts.among)] = logits[:, list(prompts.among)]
    return found


def set_apart(
    logits: Float[Tensor, "d_host vocabulary"],
    quiet: Float[Tensor, "d_host vocabulary"],
    lanes: Float[Tensor, "lanes d_host"],
    own: AskedStreams,
    others: Sequence[AskedStreams],
) -> Float[Tensor, "d_host vocabulary"]:
    """The map of the `lanes` that is nearest to `logits` on streams of its own behaviour and to 0 on those of the others, each of
    which weighs as much. Of directions that no stream has, it reads what `quiet` does.
    """
    ours = lanes @ own.moment @ lanes.T
    theirs = sum((lanes @ each.moment @ lanes.T for each in others), torch.zeros_like(ours))
    square = ours + theirs
    square += RIDGE * square.diagonal().mean() * torch.eye(len(square), dtype=square.dtype)
    missing = ours @ lanes @ (logits - quiet) - theirs @ lanes @ quiet
    return quiet + lanes.T @ torch.linalg.solve(square, missing)
