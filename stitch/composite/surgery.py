"""Depth surgery: blocks start..stop−1 of a model are removed, and weights that are already there bridge the hole.

The stream entering block start is Y + N W: Y the stream beside the MLP of block start−1, N that MLP's neurons, W its down
projection. What block stop is used to reading is L, the whole model's stream at that site. A bridge is a new W (and bias,
where the family has one), so the result needs no part that the family does not have:

    reference:passthrough           W as it is: blocks are removed and that is all (mergekit's passthrough)
    reference:replaceme             W T, T from least squares of L − Y on N W (ReplaceMe, arXiv 2505.02819)
    reference:replaceme-relative    the same, tokens weighed as below
    translation:down-projection     ridge of L − Y on N, towards W, tokens weighed
    translation:down-projections    the same, and then the down projection of block stop in the same way: its own input is no
                                    longer quite L, its target is the whole model's stream at site stop + 1

A token weighs 1 / ‖L‖², so that what counts is its relative error, which is what the norm of the next block sees of it.
Attention sinks, 10² times as long as text, then neither own the fit nor are left out of it: a bridge that bends them ruins
all attention after it.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stitch.activations.harvest import Activations
from stitch.activations.observe import observe
from stitch.composite.compose import late_half
from stitch.composite.native import without
from stitch.models.anatomy import ANATOMIES
from stitch.models.model import Model
from stitch.progress import Progress
from stitch.regression.moments import Moments, accumulate
from stitch.regression.prior import Towards, ridge_towards
from stitch.text.documents import Split
from stitch.translation.rows import NATIVE

# Translations that fold into the weights, and their rows.
TRANSLATIONS = {name: f"translation:{name}" for name in NATIVE}
PRODUCTS = [
    ("neurons", "neurons"), ("neurons", "gap"), ("neurons", "shuffled"), ("output", "output"), ("output", "distance"),
]  # fmt: skip
FITTED: tuple[Split, ...] = ("fit", "sweep")


@dataclass(frozen=True)
class Bridge:
    """Down projections by block of the shortened model: [d_ff, d], or [d_ff + 1, d] with the bias as its last row.

    `strengths` and `unexplained` say of each fit its relative λ and the held-out share of its target's squares it leaves.
    """

    downs: dict[int, Float[Tensor, "d_in d"]]
    strengths: dict[int, float] = field(default_factory=dict)
    unexplained: dict[int, float] = field(default_factory=dict)


def why_not_foldable(model: Model, start: int, stop: int, memory: int) -> str | None:
    """What keeps blocks start..stop−1 from being removed and bridged within the family, as an error message; None if nothing."""
    if not 0 < start < stop <= model.depth:
        return (
            "`native` removes blocks `layer` to `layer_b` − 1 and the block before them bridges the hole, so 0 < `layer` < "
            f"`layer_b` must hold; got {start} and {stop}: choose other layers."
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
    neurons = len(weight_of(model.down(start - 1)))
    needed = 6 * 8 * neurons**2  # moments of two splits, their eigenvectors, copies of both; float64
    if needed > memory:
        return (
            f"memory must be at least {needed / 2**30:.1f} GiB for the moments of {neurons:,} neurons; got "
            f"{memory / 2**30:.1f} GiB: raise it."
        )
    return None


def weight_of(down: Any) -> Float[Tensor, "d_in d"]:
    """The projection as a matrix for row vectors, float64 on the CPU, its bias as the last row where it has one."""
    weight = down.weight.detach().cpu().double()
    rows = weight.T if isinstance(down, nn.Linear) else weight
    return rows if down.bias is None else torch.cat([rows, down.bias.detach().cpu().double()[None]])


def parameters_of(short: Model, bridge: Bridge) -> dict[str, Tensor]:
    """The bridge as parameters of the shortened model, by their names there, in its dtype."""
    found = {}
    for block, matrix in bridge.downs.items():
        path = f"{short.anatomy.body}.{short.anatomy.blocks}.{block}.{short.anatomy.down}"
        down: Any = short.down(block)
        rows = matrix.to(down.weight.device, down.weight.dtype)
        if down.bias is not None:
            rows, found[f"{path}.bias"] = rows[:-1], rows[-1].clone()
        found[f"{path}.weight"] = (rows.T if isinstance(down, nn.Linear) else rows).contiguous()
    return found


def bridged(model: Model, start: int, stop: int, bridge: Bridge) -> Model:
    """`model` without blocks start..stop−1, bridged; all other tensors share the model's memory."""
    short = without(model, start, stop)
    for name, value in parameters_of(short, bridge).items():
        path, _, kind = name.rpartition(".")
        setattr(short.net.get_submodule(path), kind, nn.Parameter(value))
    return short


def sites_of(model: Model, start: int, stop: int) -> list[int]:
    """The sites of the whole model that bridging needs: what block start−1 reads, and what the refitted blocks aim at."""
    return [start - 1, *(site for site in (stop, stop + 1) if site <= model.depth)]


@torch.no_grad()
def fit_bridges(
    model: Model,
    start: int,
    stop: int,
    streams: Mapping[Split, Activations],
    *,
    memory: int,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Bridge]:
    """Every bridge and null by row name; λ by the relative error on the sweep split.

    `streams` hold the whole model's residual streams at `sites_of` for the fit and sweep splits.
    """
    block = start - 1

    def moments(bridge: Bridge, block: int, target: int, split: Split) -> Moments:
        chunks = _variables(
            bridged(model, start, stop, bridge), start - 1, block, target, streams[split], memory, seed, progress
        )
        return accumulate(chunks, PRODUCTS)

    fit, sweep = (moments(Bridge({}), block, stop, split) for split in FITTED)
    own = weight_of(model.down(block))
    nothing = torch.zeros(own.shape[1], own.shape[1], dtype=torch.float64)
    published = ridge_towards(fit, sweep, nothing, inputs="output", target="distance")
    weighed = ridge_towards(_weighed(fit, own), _weighed(sweep, own), nothing, inputs="output", target="gap")
    down = ridge_towards(fit, sweep, own, inputs="neurons", target="gap")
    shuffled = ridge_towards(fit, sweep, own, inputs="neurons", target="shuffled")
    bridges = {
        "reference:passthrough": Bridge({}),
        "reference:replaceme": _bridge(block, dataclasses.replace(published, weight=own @ published.weight)),
        "reference:replaceme-relative": _bridge(block, dataclasses.replace(weighed, weight=own @ weighed.weight)),
        "translation:down-projection": _bridge(block, down),
        "null:shuffled-down-projection": _bridge(block, shuffled),
    }
    if stop < model.depth:
        first = bridges["translation:down-projection"]
        moved = [moments(first, start, stop + 1, split) for split in FITTED]
        second = ridge_towards(moved[0], moved[1], weight_of(model.down(stop)), inputs="neurons", target="gap")
        bridges["translation:down-projections"] = _bridge(start, second, first)
    return bridges


def described(bridges: Mapping[str, Bridge]) -> dict[str, dict]:
    """The fits as they stand in report.json, by row name and block of the shortened model."""
    return {
        f"{name}, block {block}": {"lambda": bridge.strengths[block], "unexplained": bridge.unexplained[block]}
        for name, bridge in bridges.items()
        for block in bridge.downs
    }


def _bridge(block: int, found: Towards, before: Bridge | None = None) -> Bridge:
    before = before or Bridge({})
    return Bridge(
        {**before.downs, block: found.weight},
        {**before.strengths, block: found.strength},
        {**before.unexplained, block: found.unexplained},
    )


def _variables(
    short: Model,
    first: int,
    block: int,
    target: int,
    streams: Activations,
    memory: int,
    seed: int,
    progress: Progress | None,
) -> Iterator[dict[str, Tensor]]:
    """Neurons of `block` of the shortened model, and the gap that they should fill: target − (stream after block − N W).

    The stream starts at block `first`, where both models are still the same. `output` is N W and `distance` the gap as they
    are; rows of all others are divided by the norm of the target.
    """
    generator = torch.Generator().manual_seed(seed)
    own = weight_of(short.down(block))
    late = dataclasses.replace(short, net=late_half(short, first))
    context = streams.windows.context
    size = max(1, min(2048, memory // 16 // (8 * 4 * len(own))) // context)
    done = 0
    for shard in range(streams.shards):
        pieces = zip(streams.read(shard, first).split(size), streams.read(shard, target).split(size), strict=True)
        for x, wanted in pieces:
            seen = observe(
                late, {"inputs_embeds": x.to(short.device)}, streams=[block + 1 - first], neurons=[block - first]
            )
            neurons, after, goal = (
                found.flatten(0, 1).cpu().double()
                for found in (seen.neurons[block - first], seen.streams[block + 1 - first], wanted)
            )
            if len(own) > neurons.shape[1]:
                neurons = torch.cat([neurons, neurons.new_ones(len(neurons), 1)], 1)
            output = neurons @ own
            gap = goal - (after - output)
            scale = 1 / goal.norm(dim=1, keepdim=True).clamp_min(1e-30)
            order = torch.randperm(len(gap), generator=generator)
            weighed = {"neurons": scale * neurons, "gap": scale * gap, "shuffled": scale * gap[order]}
            yield {**weighed, "output": output, "distance": gap}
            done += len(gap)
            if progress:
                progress(f"neurons of block {block} (tokens)", done, streams.windows.tokens)


def _weighed(neurons: Moments, own: Float[Tensor, "d_in d"]) -> Moments:
    """The moments of the MLP's output N W with its tokens weighed, from those of its neurons."""
    products = {
        ("output", "output"): own.T @ neurons.product("neurons", "neurons") @ own,
        ("output", "gap"): own.T @ neurons.product("neurons", "gap"),
    }
    return Moments(neurons.count, neurons.sums, neurons.squares, products)
