"""Bridges over the seam of a model with some blocks removed or repeated, in closed form.

The seam is where the new model rejoins the whole one. The block there expects L, the whole model's stream at its site. It gets
Y + N W, where N are the activations of the MLP's neurons in the block before the seam, W is its down projection, and Y is
everything else in the stream. A bridge is a new W (with a bias where the family has one):

    reference:passthrough           W unchanged: blocks are removed or repeated and nothing is refitted (mergekit's passthrough)
    reference:replaceme             W T, with T from least squares of L − Y on N W (ReplaceMe, arXiv 2505.02819)
    reference:replaceme-relative    the same, with tokens weighed as below
    reference:linear-patch          the stream at the seam times a matrix that does not fold (see linear_patch.py)
    translation:down-projection     ridge of L − Y on N, shrunken towards W, with tokens weighed
    translation:down-projections    the same, and then the down projection of the block after the seam in the same way. Its
                                    target is the whole model's stream one site later, its input the stream after the first bridge

A token has weight 1 / ‖L‖², so that its relative error counts, as the next block normalises its input. The streams of attention
sinks are about 10² times as long as others: with these weights they do not dominate the fit. Leaving them out would be
worse, since a bridge that distorts them ruins all later attention.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stitch.activations.harvest import Activations
from stitch.activations.observe import observe
from stitch.composite.compose import late_half
from stitch.composite.linear_patch import linear_patch
from stitch.composite.native import with_blocks
from stitch.composite.splice import Splice
from stitch.composite.surgery import Bridge, bridged, weight_of
from stitch.models.model import Model
from stitch.progress import Progress
from stitch.regression.moments import Moments, accumulate
from stitch.regression.prior import Towards, ridge_towards
from stitch.text.documents import Split

ALONE = [("neurons", "neurons"), ("neurons", "gap")]  # the products that the down projection alone needs
PRODUCTS = [*ALONE, ("neurons", "shuffled"), ("output", "output"), ("output", "distance")]
FITTED: tuple[Split, ...] = ("fit", "sweep")


def sites_of(splice: Splice) -> list[int]:
    """The sites of the whole model that bridging reads: where the refitted block's input is shared, and the blocks' targets."""
    targets = (site for site in (splice.expected, splice.expected + 1) if site <= splice.depth)
    return list(dict.fromkeys((splice.shared, *targets)))


@torch.no_grad()
def fit_bridges(
    model: Model,
    splice: Splice,
    streams: Mapping[Split, Activations],
    *,
    memory: int,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Bridge]:
    """Every bridge and null by row name, with λ chosen by the relative error on the sweep split.

    `streams` has the whole model's residual streams at `sites_of(splice)` for the fit and sweep splits. `memory` is in bytes.
    """
    block = splice.seam - 1

    def seen(split: Split, bridge: Bridge, block: int, target: int) -> Iterator[_Seen]:
        found = bridged(model, splice, bridge)
        return _seen(found, splice.shared, block, target, streams[split], memory, progress)

    def moments(split: Split, bridge: Bridge, block: int, target: int) -> Moments:
        return accumulate(_variables(seen(split, bridge, block, target), seed), PRODUCTS)

    fit, sweep = (moments(split, Bridge({}), block, splice.expected) for split in FITTED)
    own = weight_of(model.down(splice.order[block]))
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
    patch = linear_patch((one.stream, one.goal) for one in seen("fit", Bridge({}), block, splice.expected))
    if patch is not None:
        bridges["reference:linear-patch"] = Bridge({}, patch=patch)
    if splice.expected < splice.depth:
        first = bridges["translation:down-projection"]
        moved = [moments(split, first, splice.seam, splice.expected + 1) for split in FITTED]
        after = weight_of(model.down(splice.expected))
        second = ridge_towards(moved[0], moved[1], after, inputs="neurons", target="gap")
        bridges["translation:down-projections"] = _bridge(splice.seam, second, first)
    return bridges


@torch.no_grad()
def fit_down_projection(
    model: Model, splice: Splice, streams: Mapping[Split, Activations], *, memory: int, progress: Progress | None = None
) -> Bridge:
    """The bridge `translation:down-projection` alone; the arguments are those of `fit_bridges`."""
    plain, block = with_blocks(model, splice.order), splice.seam - 1
    fit, sweep = (
        accumulate(
            _variables(_seen(plain, splice.shared, block, splice.expected, streams[split], memory, progress), seed=0),
            ALONE,
        )
        for split in FITTED
    )
    own = weight_of(model.down(splice.order[block]))
    return _bridge(block, ridge_towards(fit, sweep, own, inputs="neurons", target="gap"))


def _bridge(block: int, found: Towards, before: Bridge | None = None) -> Bridge:
    before = before or Bridge({})
    return Bridge(
        {**before.downs, block: found.weight},
        {**before.strengths, block: found.strength},
        {**before.unexplained, block: found.unexplained},
    )


@dataclass(frozen=True)
class _Seen:
    """Some windows in float64 on the CPU: the neurons of a block (and 1 where its projection has a bias), what its projection
    makes of them, the stream after the block, and the whole model's stream that should stand there."""

    neurons: Float[Tensor, "windows context d_in"]
    output: Float[Tensor, "windows context d"]
    stream: Float[Tensor, "windows context d"]
    goal: Float[Tensor, "windows context d"]


def _seen(
    spliced: Model,
    first: int,
    block: int,
    target: int,
    streams: Activations,
    memory: int,
    progress: Progress | None,
) -> Iterator[_Seen]:
    """What `block` of the new model gives, which is run from block `first` on: there its stream is still the whole model's."""
    own = weight_of(spliced.down(block))
    late = dataclasses.replace(spliced, net=late_half(spliced, first))
    context = streams.windows.context
    size = max(1, min(2048, memory // 16 // (8 * 4 * len(own))) // context)
    done = 0
    for shard in range(streams.shards):
        pieces = zip(streams.read(shard, first).split(size), streams.read(shard, target).split(size), strict=True)
        for x, goal in pieces:
            found = observe(
                late, {"inputs_embeds": x.to(spliced.device)}, streams=[block + 1 - first], neurons=[block - first]
            )
            neurons = found.neurons[block - first].cpu().double()
            if len(own) > neurons.shape[-1]:
                neurons = torch.cat([neurons, neurons.new_ones(*neurons.shape[:-1], 1)], -1)
            stream = found.streams[block + 1 - first].cpu().double()
            yield _Seen(neurons, neurons @ own, stream, goal.cpu().double())
            done += len(goal) * context
            if progress:
                progress(f"neurons of block {block} (tokens)", done, streams.windows.tokens)


def _variables(chunks: Iterator[_Seen], seed: int) -> Iterator[dict[str, Tensor]]:
    """Neurons N of the block, and the gap for their output to fill: goal − (stream after the block − N W).

    `output` is N W and `distance` the gap, both unweighed. Rows of `neurons`, `gap` and `shuffled` (the gap of other tokens) are
    divided by the goal's norm.
    """
    generator = torch.Generator().manual_seed(seed)
    for seen in chunks:
        neurons, output, stream, goal = (
            part.flatten(0, 1) for part in (seen.neurons, seen.output, seen.stream, seen.goal)
        )
        gap = goal - (stream - output)
        scale = 1 / goal.norm(dim=1, keepdim=True).clamp_min(1e-30)
        order = torch.randperm(len(gap), generator=generator)
        weighed = {"neurons": scale * neurons, "gap": scale * gap, "shuffled": scale * gap[order]}
        yield {**weighed, "output": output, "distance": gap}


def _weighed(neurons: Moments, own: Float[Tensor, "d_in d"]) -> Moments:
    """The moments of the MLP's output N W with tokens weighed, from those of its neurons N."""
    products = {
        ("output", "output"): own.T @ neurons.product("neurons", "neurons") @ own,
        ("output", "gap"): own.T @ neurons.product("neurons", "gap"),
    }
    return Moments(neurons.count, neurons.sums, neurons.squares, products)
