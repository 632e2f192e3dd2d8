"""How a plan's maps read the host's stream, calibrated on prompts after all that is written before."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stitch.grafts.norm_inputs import normalised_inputs
from stitch.grafts.plan import Plan
from stitch.internals.weights import Spot
from stitch.models.model import Model


@dataclass(frozen=True)
class Reading:
    """How a plan's maps read the host's stream at a spot.

    `scale` makes what they read as large as in the donor; `missing` is the share of that which they do not get. `constant` and
    `code` are the mean lengths of the constant lane and of position codes after the host's norm, `lane` are those of the constant
    lane by token, divided by their mean.
    """

    plan: Plan
    spot: Spot
    scale: float
    missing: float
    constant: float
    code: float
    lane: Float[Tensor, " tokens"] | None

    @classmethod
    def of(cls, host: Model, plan: Plan, spot: Spot) -> "Reading":
        """Calibrated on the plan's prompts with all that is written into the host so far."""
        normalised = normalised_inputs(host, [spot], plan.ids)[spot]
        target, read = plan.targets[spot], normalised @ plan.frame.read
        scale = float((target * read).sum() / read.square().sum())
        missing = float((target - scale * read).square().sum() / target.square().sum())
        constant, codes = plan.frame.constant, plan.frame.codes
        lane = None if constant is None else (normalised @ constant).flatten()
        return cls(
            plan,
            spot,
            scale,
            missing,
            constant=0.0 if lane is None else float(lane.mean()),
            code=0.0 if codes is None else float((normalised @ codes.T).norm(dim=-1).mean()),
            lane=None if lane is None else lane / lane.mean(),
        )

    def described(self) -> dict:
        """As the report has it."""
        return {"spot": f"{self.spot[0]} {self.spot[1]}", "scale": self.scale, "missing": self.missing}

    def host_map(
        self,
        weight: Float[Tensor, "d columns"],
        bias: Float[Tensor, " columns"],
        codes: Float[Tensor, "codes columns"] | None = None,
        *,
        biased: bool,
    ) -> Float[Tensor, "d_host columns"]:
        """A map of the donor's normalised stream as a map of the host's. Unless the host has a parameter for its bias
        (`biased`), the bias is read from the constant lane."""
        frame = self.plan.frame
        total = self.scale * frame.read @ weight
        if not biased and frame.constant is not None:
            total = total + torch.outer(frame.constant, bias) / self.constant
        if codes is not None and frame.codes is not None:
            total = total + frame.codes.T @ codes / self.code
        return total


def like(value: Tensor, host: Model) -> Tensor:
    return value.to(host.device, host.dtype)
