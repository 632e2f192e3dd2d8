"""Depth surgery: a range of a model's blocks is removed or run twice, and existing weights are refitted to bridge the seam.

A bridge consists of new down projections (see stitch/composite/bridges.py for how they are fitted), so the result has only the
parts that its family has.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stitch.composite.exact import require_renumbered
from stitch.composite.native import with_blocks
from stitch.composite.splice import Splice
from stitch.errors import UsageError
from stitch.models.anatomy import dotted
from stitch.models.model import Model
from stitch.translation.rows import NATIVE

# Translations that fold into the weights, and their rows.
TRANSLATIONS = {name: f"translation:{name}" for name in NATIVE}
PUBLISHED = {
    "reference:passthrough": "nothing refitted",
    "reference:replaceme": "bridged by ReplaceMe",
    "reference:replaceme-relative": "bridged by ReplaceMe with tokens weighed",
    "reference:linear-patch": "bridged by LinearPatch",
}


@dataclass(frozen=True)
class Bridge:
    """New down projections by block of the new model: [d_ff, d], or [d_ff + 1, d] with the bias as the last row.

    For each fit, `strengths` has the relative λ, and `unexplained` the share of the target's squares that it leaves on held-out
    tokens. `gains` are new gains of the norm after the MLP, in families that have one. `maps` are matrices that what the MLP of a
    block writes is multiplied by, `patch` is one for the stream entering the seam; no family has a place for these.
    """

    downs: dict[int, Float[Tensor, "d_in d"]]
    strengths: dict[int, float] = field(default_factory=dict)
    unexplained: dict[int, float] = field(default_factory=dict)
    gains: dict[int, Float[Tensor, " d"]] = field(default_factory=dict)
    maps: dict[int, Float[Tensor, "d d"]] = field(default_factory=dict)
    patch: Float[Tensor, "d d"] | None = None

    @property
    def folds(self) -> bool:
        """Whether it is nothing but other values of the model's own weights."""
        return self.patch is None and not self.maps


def refits(model: Model) -> bool:
    """Whether a down projection of its blocks is known, which a bridge can refit. That of a mixture of experts is not."""
    return bool(model.anatomy.down)


def why_not_spliced(model: Model, early: int, late: int) -> str | None:
    """Why a model of the first `early` blocks and those from `late` on is not one of its family, as an error message;
    None if it is."""
    if not (0 < early <= model.depth and 0 <= late <= model.depth and early != late):
        return (
            "`native` removes blocks `layer` to `layer_b` − 1 or repeats blocks `layer_b` to `layer` − 1, so `layer` must be "
            f"above 0 and differ from `layer_b`; got {early} and {late}: choose others, and give both."
        )
    if getattr(model.config, "scale_attn_by_inverse_layer_idx", False):
        return (
            "`native` needs blocks that do not depend on their number; this GPT-2 scales attention by it "
            "(scale_attn_by_inverse_layer_idx): leave `native` out."
        )
    try:
        require_renumbered(model)
        with_blocks(model, Splice(model.depth, early, late).order)  # its last block may have weights that others lack
    except UsageError as cannot:
        return str(cannot)
    return None


def why_not_foldable(model: Model, early: int, late: int, memory: int) -> str | None:
    """Why the model of its first `early` blocks and those from `late` on cannot be bridged within the family, as an error
    message; None if it can."""
    if (reason := why_not_spliced(model, early, late)) is not None:
        return reason
    try:
        neurons = len(weight_of(model.down(early - 1)))
    except UsageError as cannot:
        return str(cannot)
    needed = 6 * 8 * neurons**2  # moments of two splits, a factor of one, copies of both; float64
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


def gain_of(model: Model, block: int) -> Float[Tensor, " d"] | None:
    """The gain of the norm after the MLP of a block, in float64 on the CPU; None in families without one.

    Families store it in different ways (Gemma as gain − 1), so it is what the norm makes of ones, whose mean square is 1.
    """
    if model.anatomy.mlp_out_norm is None:
        return None
    norm: Any = model.blocks[block].get_submodule(model.anatomy.mlp_out_norm)
    with torch.no_grad():
        return norm(torch.ones_like(norm.weight)).cpu().double()


def parameters_of(spliced: Model, bridge: Bridge) -> dict[str, Tensor]:
    """The bridge as parameters of the new model, by name, in the model's dtype."""
    found = {}
    for block, matrix in bridge.downs.items():
        path = dotted(spliced.anatomy.path_of_blocks, str(block), spliced.anatomy.down)
        down: Any = spliced.down(block)
        rows = matrix.to(down.weight.device, down.weight.dtype)
        if down.bias is not None:
            rows, found[f"{path}.bias"] = rows[:-1], rows[-1].clone()
        found[f"{path}.weight"] = (rows.T if isinstance(down, nn.Linear) else rows).contiguous()
    for block, gain in bridge.gains.items():
        norm = spliced.anatomy.mlp_out_norm or ""
        path = dotted(spliced.anatomy.path_of_blocks, str(block), norm, "weight")
        weight, own = spliced.net.get_parameter(path), gain_of(spliced, block)
        assert own is not None, "only families with a norm after the MLP have gains"
        found[path] = weight.detach() + (gain - own).to(weight.device, weight.dtype)
    return found


def bridged(model: Model, splice: Splice, bridge: Bridge) -> Model:
    """`model` with some blocks removed or repeated, and with the bridge. All other tensors share memory with those of `model`."""
    spliced = with_blocks(model, splice.order)
    for name, value in parameters_of(spliced, bridge).items():
        path, _, kind = name.rpartition(".")
        setattr(spliced.net.get_submodule(path), kind, nn.Parameter(value))
    for block, matrix in bridge.maps.items():
        written = spliced.blocks[block].get_submodule(spliced.anatomy.mlp_out_norm or spliced.anatomy.mlp)
        written.register_forward_hook(_times(matrix.to(spliced.device, spliced.dtype)))
    if bridge.patch is not None:
        patch = bridge.patch.to(spliced.device, spliced.dtype)
        entered = spliced.blocks[splice.seam] if splice.seam < spliced.depth else spliced.final_norm
        entered.register_forward_pre_hook(lambda module, args, kwargs: _patched(args, kwargs, patch), with_kwargs=True)
    return spliced


def _times(matrix: Tensor):
    return lambda module, args, output: output @ matrix


def _patched(args: tuple, kwargs: dict, patch: Tensor) -> tuple[tuple, dict]:
    """The arguments of a block, whose first is the stream, with the stream multiplied by `patch`."""
    if args:
        return (args[0] @ patch, *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": kwargs["hidden_states"] @ patch}


def in_words(model: Model, splice: Splice, bridges: Iterable[str]) -> dict[str, str]:
    """What the bridges that others have published make of the model, by row name."""
    return {row: f"{model.name} {splice.in_words}, {how}" for row, how in PUBLISHED.items() if row in bridges}


def described(bridges: Mapping[str, Bridge]) -> dict[str, dict]:
    """The fits as report.json has them, by row name and block of the new model."""
    return {
        f"{name}, block {block}": {"lambda": bridge.strengths[block], "unexplained": bridge.unexplained[block]}
        for name, bridge in bridges.items()
        for block in bridge.downs
    }
