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

Where a norm follows the down projection (Gemma, OLMo 2), the bridge is a new W and a new gain of that norm: see normed.py.

A token has weight 1 / ‖L‖², so that its relative error counts, as the next block normalises its input. The streams of attention
sinks are about 10² times as long as others: with these weights they do not dominate the fit. Leaving them out would be
worse, since a bridge that distorts them ruins all later attention.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stitch.activations.harvest import Activations
from stitch.composite.compose import late_half
from stitch.composite.linear_patch import linear_patch
from stitch.composite.normed import direction, fit_gain, normalised
from stitch.composite.splice import Splice
from stitch.composite.surgery import Bridge, bridged, gain_of, weight_of
from stitch.models.model import Model
from stitch.models.module_inputs import module_inputs
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
    evidence = _Evidence(model, splice, streams, memory, seed, progress)
    before = _Place(splice.seam - 1, splice.expected, Bridge({}))
    fit, sweep = (evidence.moments(split, before, PRODUCTS) for split in FITTED)
    first = evidence.refitted(before, fit, sweep)
    bridges = {
        "reference:passthrough": Bridge({}),
        **_replace_me(evidence, before, fit, sweep),
        "translation:down-projection": first,
        "null:shuffled-down-projection": evidence.refitted(before, fit, sweep, target="shuffled"),
    }
    patch = linear_patch((one.stream, one.goal) for one in evidence.seen("fit", before))
    if patch is not None:
        bridges["reference:linear-patch"] = Bridge({}, patch=patch)
    if splice.expected < splice.depth:
        bridges["translation:down-projections"] = _block_after(evidence, first)
    return bridges


@torch.no_grad()
def fit_down_projection(
    model: Model, splice: Splice, streams: Mapping[Split, Activations], *, memory: int, progress: Progress | None = None
) -> Bridge:
    """The bridge `translation:down-projection` alone; the arguments are those of `fit_bridges`."""
    return fit_bridge("translation:down-projection", model, splice, streams, memory=memory, progress=progress)


@torch.no_grad()
def fit_bridge(
    row: str,
    model: Model,
    splice: Splice,
    streams: Mapping[Split, Activations],
    *,
    memory: int,
    progress: Progress | None = None,
) -> Bridge:
    """The bridge of one row that folds into the weights, as `fit_bridges` fits it; the other arguments are the same.

    Where no block follows the seam, `down-projections` is `down-projection`.
    """
    if row == "reference:passthrough":
        return Bridge({})
    evidence = _Evidence(model, splice, streams, memory, 0, progress)
    before = _Place(splice.seam - 1, splice.expected, Bridge({}))
    is_map = row.startswith("reference:replaceme")
    fit, sweep = (evidence.moments(split, before, PRODUCTS if is_map else ALONE) for split in FITTED)
    if is_map:
        return _replace_me(evidence, before, fit, sweep)[row]
    first = evidence.refitted(before, fit, sweep)
    has_next = row == "translation:down-projections" and splice.expected < splice.depth
    return _block_after(evidence, first) if has_next else first


@dataclass(frozen=True)
class _Place:
    """A block of the new model to refit, the site of the whole model whose stream it should give, and the bridge so far."""

    block: int
    target: int
    bridge: Bridge


@dataclass(frozen=True)
class _Evidence:
    """What bridges are fitted from; see `fit_bridges`."""

    model: Model
    splice: Splice
    streams: Mapping[Split, Activations]
    memory: int
    seed: int
    progress: Progress | None

    def seen(self, split: Split, place: _Place) -> Iterator["_Seen"]:
        """What the block gives in the new model with the bridge so far, on all windows of a split."""
        spliced = bridged(self.model, self.splice, place.bridge)
        return _seen(spliced, self.splice.shared, place, self.streams[split], self.memory, self.progress)

    def moments(self, split: Split, place: _Place, products: list[tuple[str, str]]) -> Moments:
        return accumulate(_variables(self.seen(split, place), self.seed), products)

    def refitted(self, place: _Place, fit: Moments, sweep: Moments, target: str = "gap") -> Bridge:
        """The bridge so far with the block's down projection refitted to `target`, gap or shuffled."""
        own = weight_of(self.model.down(self.splice.order[place.block]))
        found = ridge_towards(fit, sweep, own, inputs="neurons", target=target)
        bridge = _with(place.bridge, place.block, found)
        if self.model.anatomy.mlp_out_norm is None:
            return bridge
        seed = self.seed if target == "shuffled" else None
        pieces = ((one.neurons @ found.weight, one.gap, one.goal) for one in self.seen("fit", place))
        gain = fit_gain(pieces, seed)
        return dataclasses.replace(bridge, gains={**bridge.gains, place.block: gain})


def _block_after(evidence: _Evidence, first: Bridge) -> Bridge:
    """The bridge `first`, and then the block after the seam refitted in the same way."""
    after = _Place(evidence.splice.seam, evidence.splice.expected + 1, first)
    fit, sweep = (evidence.moments(split, after, ALONE) for split in FITTED)
    return evidence.refitted(after, fit, sweep)


def _replace_me(evidence: _Evidence, place: _Place, fit: Moments, sweep: Moments) -> dict[str, Bridge]:
    """ReplaceMe's map T of what the MLP writes. It folds into the down projection unless a norm lies between."""
    model, block = evidence.model, place.block
    own = weight_of(model.down(evidence.splice.order[block]))
    nothing = torch.zeros(model.width, model.width, dtype=torch.float64)
    published = ridge_towards(fit, sweep, nothing, inputs="output", target="distance")
    if model.anatomy.mlp_out_norm is not None:
        return {"reference:replaceme": Bridge({}, maps={block: published.weight})}
    weighed = ridge_towards(_weighed(fit, own), _weighed(sweep, own), nothing, inputs="output", target="gap")
    return {
        name: _with(place.bridge, block, dataclasses.replace(found, weight=own @ found.weight))
        for name, found in (("reference:replaceme", published), ("reference:replaceme-relative", weighed))
    }


def _with(bridge: Bridge, block: int, found: Towards) -> Bridge:
    return dataclasses.replace(
        bridge,
        downs={**bridge.downs, block: found.weight},
        strengths={**bridge.strengths, block: found.strength},
        unexplained={**bridge.unexplained, block: found.unexplained},
    )


@dataclass(frozen=True)
class _Seen:
    """Some windows in float64 on the CPU.

    They are the neurons of a block (and 1 where its projection has a bias), what the projection makes of them, what the MLP
    writes to the stream (the same where no norm follows), the stream after the block, and the whole model's stream that
    should stand there. `gain` is that of the norm.
    """

    neurons: Float[Tensor, "windows context d_in"]
    projected: Float[Tensor, "windows context d"]
    output: Float[Tensor, "windows context d"]
    stream: Float[Tensor, "windows context d"]
    goal: Float[Tensor, "windows context d"]
    gain: Float[Tensor, " d"] | None

    @property
    def gap(self) -> Float[Tensor, "windows context d"]:
        """What the MLP would have to write: goal − (stream after the block − output)."""
        return self.goal - (self.stream - self.output)


def _seen(
    spliced: Model, first: int, place: _Place, streams: Activations, memory: int, progress: Progress | None
) -> Iterator[_Seen]:
    """What a block of the new model gives, which is run from block `first` on: there its stream is still the whole model's."""
    block, own, gain = place.block, weight_of(spliced.down(place.block)), gain_of(spliced, place.block)
    late = late_half(spliced, first)
    down: Any = late.blocks[block].get_submodule(spliced.anatomy.down)
    context = streams.windows.context
    size = max(1, min(2048, memory // 16 // (8 * 4 * len(own))) // context)
    done = 0
    for shard in range(streams.shards):
        pieces = zip(streams.read(shard, first).split(size), streams.read(shard, place.target).split(size), strict=True)
        for x, goal in pieces:
            found = module_inputs(
                late.run, {"neurons": down, "stream": late.at(block + 1)}, stream=x.to(spliced.device)
            )
            neurons = found["neurons"].cpu().double()
            if len(own) > neurons.shape[-1]:
                neurons = torch.cat([neurons, neurons.new_ones(*neurons.shape[:-1], 1)], -1)
            stream = found["stream"].cpu().double()
            projected = neurons @ own
            output = projected if gain is None else gain * normalised(projected)
            yield _Seen(neurons, projected, output, stream, goal.cpu().double(), gain)
            done += len(goal) * context
            if progress:
                progress(f"neurons of block {block} (tokens)", done, streams.windows.tokens)


def _variables(chunks: Iterator[_Seen], seed: int) -> Iterator[dict[str, Tensor]]:
    """Neurons N of the block, and the gap for their output to fill, or the direction of it where a norm follows.

    `output` is what the MLP writes and `distance` the gap, both unweighed. Rows of `neurons`, `gap` and `shuffled` (the gap of
    other tokens) are weighed.
    """
    generator = torch.Generator().manual_seed(seed)
    for seen in chunks:
        neurons, projected, output, gap, goal = (
            part.flatten(0, 1) for part in (seen.neurons, seen.projected, seen.output, seen.gap, seen.goal)
        )
        if seen.gain is None:
            wanted, scale = gap, 1 / goal.norm(dim=1, keepdim=True).clamp_min(1e-30)
        else:
            wanted, scale = direction(gap, goal, projected, seen.gain)
        order = torch.randperm(len(gap), generator=generator)
        weighed = {"neurons": scale * neurons, "gap": scale * wanted, "shuffled": scale * wanted[order]}
        yield {**weighed, "output": output, "distance": gap}


def _weighed(neurons: Moments, own: Float[Tensor, "d_in d"]) -> Moments:
    """The moments of the MLP's output N W with tokens weighed, from those of its neurons N."""
    products = {
        ("output", "output"): own.T @ neurons.product("neurons", "neurons") @ own,
        ("output", "gap"): own.T @ neurons.product("neurons", "gap"),
    }
    return Moments(neurons.count, neurons.sums, neurons.squares, products)
