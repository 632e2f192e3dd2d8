"""Depth surgery: blocks start..stop−1 of a model are removed, and existing weights are refitted to bridge the gap.

The stream entering block start is Y + N W, where N are the activations of the MLP's neurons in block start−1, W is its down
projection, and Y is everything else in the stream. Block stop expects L, the whole model's stream at site stop. A bridge is a new
W (with a bias where the family has one), so the result has only the parts that its family has:

    reference:passthrough           W unchanged: blocks are removed and nothing is refitted (mergekit's passthrough)
    reference:replaceme             W T, with T from least squares of L − Y on N W (ReplaceMe, arXiv 2505.02819)
    reference:replaceme-relative    the same, with tokens weighed as below
    translation:down-projection     ridge of L − Y on N, shrunken towards W, with tokens weighed
    translation:down-projections    the same, and then the down projection of block stop in the same way. Its target is the
                                    whole model's stream at site stop + 1, its input the stream after the first bridge

A token has weight 1 / ‖L‖², so that its relative error counts, as the next block normalises its input. The streams of attention
sinks are about 10² times as long as others: with these weights they do not dominate the fit. Leaving them out would be
worse, since a bridge that distorts them ruins all later attention.
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
    """New down projections by block of the shortened model: [d_ff, d], or [d_ff + 1, d] with the bias as the last row.

    For each fit, `strengths` has the relative λ, and `unexplained` the share of the target's squares that it leaves on held-out
    tokens.
    """

    downs: dict[int, Float[Tensor, "d_in d"]]
    strengths: dict[int, float] = field(default_factory=dict)
    unexplained: dict[int, float] = field(default_factory=dict)


def why_not_foldable(model: Model, start: int, stop: int, memory: int) -> str | None:
    """Why blocks start..stop−1 cannot be removed and bridged within the family, as an error message; None if they can."""
    if not 0 < start < stop <= model.depth:
        return (
            "`native` removes blocks `layer` to `layer_b` − 1 and the block before them bridges the gap, so 0 < `layer` < "
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
    """The projection as a matrix for row vectors, in float64 on the CPU, with the bias as the last row where there is one."""
    weight = down.weight.detach().cpu().double()
    rows = weight.T if isinstance(down, nn.Linear) else weight
    return rows if down.bias is None else torch.cat([rows, down.bias.detach().cpu().double()[None]])


def parameters_of(short: Model, bridge: Bridge) -> dict[str, Tensor]:
    """The bridge as parameters of the shortened model, by name, in the model's dtype."""
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
    """`model` without blocks start..stop−1 and with the bridge. All other tensors share memory with those of `model`."""
    short = without(model, start, stop)
    for name, value in parameters_of(short, bridge).items():
        path, _, kind = name.rpartition(".")
        setattr(short.net.get_submodule(path), kind, nn.Parameter(value))
    return short


def sites_of(model: Model, start: int, stop: int) -> list[int]:
    """The sites of the whole model that bridging reads: the input of block start−1, and the targets of the refitted blocks."""
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
    """Every bridge and null by row name, with λ chosen by the relative error on the sweep split.

    `streams` has the whole model's residual streams at `sites_of(…)` for the fit and sweep splits. `memory` is in bytes.
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
    """The fits as report.json has them, by row name and block of the shortened model."""
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
    """Neurons N of `block` of the shortened model, and the gap for their output to fill: target − (stream after block − N W).

    The shortened model is run from block `first` on, whose input it shares with the whole model. `output` is N W and `distance`
    the gap, both unweighed. Rows of `neurons`, `gap` and `shuffled` (the gap of other tokens) are divided by the target's norm.
    """
    generator = torch.Generator().manual_seed(seed)
    own = weight_of(short.down(block))
    late = dataclasses.replace(short, net=late_half(short, first))
    context = streams.windows.context
    size = max(1, min(2048, memory // 16 // (8 * 4 * len(own))) // context)
    done = 0
    for shard in range(streams.shards):
        pieces = zip(streams.read(shard, first).split(size), streams.read(shard, target).split(size), strict=True)
        for x, target_stream in pieces:
            seen = observe(
                late, {"inputs_embeds": x.to(short.device)}, streams=[block + 1 - first], neurons=[block - first]
            )
            neurons, after, goal = (
                found.flatten(0, 1).cpu().double()
                for found in (seen.neurons[block - first], seen.streams[block + 1 - first], target_stream)
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
    """The moments of the MLP's output N W with tokens weighed, from those of its neurons N."""
    products = {
        ("output", "output"): own.T @ neurons.product("neurons", "neurons") @ own,
        ("output", "gap"): own.T @ neurons.product("neurons", "gap"),
    }
    return Moments(neurons.count, neurons.sums, neurons.squares, products)
