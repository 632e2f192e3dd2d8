"""Depth surgery: a range of a model's blocks is removed or run twice, and existing weights are refitted to bridge the seam.

A bridge consists of new down projections (see stitch/composite/bridges.py for how they are fitted), so the result has only the
parts that its family has.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stitch.composite.native import with_blocks
from stitch.composite.splice import Splice
from stitch.models.anatomy import ANATOMIES
from stitch.models.model import Model
from stitch.translation.rows import NATIVE

# Translations that fold into the weights, and their rows.
TRANSLATIONS = {name: f"translation:{name}" for name in NATIVE}


@dataclass(frozen=True)
class Bridge:
    """New down projections by block of the new model: [d_ff, d], or [d_ff + 1, d] with the bias as the last row.

    For each fit, `strengths` has the relative λ, and `unexplained` the share of the target's squares that it leaves on held-out
    tokens. `patch` is a matrix that the stream entering the seam is multiplied by; no family has a place for it.
    """

    downs: dict[int, Float[Tensor, "d_in d"]]
    strengths: dict[int, float] = field(default_factory=dict)
    unexplained: dict[int, float] = field(default_factory=dict)
    patch: Float[Tensor, "d d"] | None = None

    @property
    def folds(self) -> bool:
        """Whether it is nothing but other values of the model's own weights."""
        return self.patch is None


def why_not_foldable(model: Model, early: int, late: int, memory: int) -> str | None:
    """Why the model of its first `early` blocks and those from `late` on cannot be bridged within the family, as an error
    message; None if it can."""
    if not (0 < early <= model.depth and 0 <= late <= model.depth and early != late):
        return (
            "`native` removes blocks `layer` to `layer_b` − 1 or repeats blocks `layer_b` to `layer` − 1, so `layer` must be "
            f"above 0 and differ from `layer_b`; got {early} and {late}: choose other layers."
        )
    if model.anatomy.mlp_out_norm is not None:
        folding = ", ".join(anatomy.family for anatomy in ANATOMIES.values() if anatomy.mlp_out_norm is None)
        return (
            f"`native` needs an MLP that writes to the residual stream directly; {model.anatomy.family} has a norm between "
            f"them: leave `native` out, or choose a model of {folding}."
        )
    if getattr(model.config, "scale_attn_by_inverse_layer_idx", False):
        return (
            "`native` needs blocks that do not depend on their number; this GPT-2 scales attention by it "
            "(scale_attn_by_inverse_layer_idx): leave `native` out."
        )
    neurons = len(weight_of(model.down(early - 1)))
    needed = 6 * 8 * neurons**2  # moments of two splits, their eigenvectors, copies of both; float64
    if needed > memory:
        return (
            f"memory must be at least {needed / 2**30:.1f} GiB for the moments of {neurons:,} neurons; got "
            f"{memory / 2**30:.1f} GiB: raise it."
        )
    return None


def weight_of(down: Any) -> Float[Tensor, "d_in d"]:
    """The projection as a matrix for row vectors, in float64 on the CPU, with the bias as the last row where there is one."""
    weight = down.weight.detach().cpu().double()
    rows = weight.T if isinstance(down, nn.Linear) else weight
    return rows if down.bias is None else torch.cat([rows, down.bias.detach().cpu().double()[None]])


def parameters_of(spliced: Model, bridge: Bridge) -> dict[str, Tensor]:
    """The bridge as parameters of the new model, by name, in the model's dtype."""
    found = {}
    for block, matrix in bridge.downs.items():
        path = f"{spliced.anatomy.body}.{spliced.anatomy.blocks}.{block}.{spliced.anatomy.down}"
        down: Any = spliced.down(block)
        rows = matrix.to(down.weight.device, down.weight.dtype)
        if down.bias is not None:
            rows, found[f"{path}.bias"] = rows[:-1], rows[-1].clone()
        found[f"{path}.weight"] = (rows.T if isinstance(down, nn.Linear) else rows).contiguous()
    return found


def bridged(model: Model, splice: Splice, bridge: Bridge) -> Model:
    """`model` with some blocks removed or repeated, and with the bridge. All other tensors share memory with those of `model`."""
    spliced = with_blocks(model, splice.order)
    for name, value in parameters_of(spliced, bridge).items():
        path, _, kind = name.rpartition(".")
        setattr(spliced.net.get_submodule(path), kind, nn.Parameter(value))
    if bridge.patch is not None:
        patch = bridge.patch.to(spliced.device, spliced.dtype)
        entered = [*spliced.blocks, spliced.final_norm][splice.seam]
        entered.register_forward_pre_hook(lambda module, args, kwargs: _patched(args, kwargs, patch), with_kwargs=True)
    return spliced


def _patched(args: tuple, kwargs: dict, patch: Tensor) -> tuple[tuple, dict]:
    """The arguments of a block, whose first is the stream, with the stream multiplied by `patch`."""
    if args:
        return (args[0] @ patch, *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": kwargs["hidden_states"] @ patch}


def described(bridges: Mapping[str, Bridge]) -> dict[str, dict]:
    """The fits as report.json has them, by row name and block of the new model."""
    return {
        f"{name}, block {block}": {"lambda": bridge.strengths[block], "unexplained": bridge.unexplained[block]}
        for name, bridge in bridges.items()
        for block in bridge.downs
    }
