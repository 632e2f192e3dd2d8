"""Rearranges a model into few blocks so that it keeps most of a behaviour, and chooses the components of it that fit into a
host."""

import heapq
import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from stitch.circuits.attribution import InputPath, OutputsAndLogits, integrated
from stitch.circuits.behaviours.prompts import Prompts
from stitch.circuits.components import Place
from stitch.circuits.find import first_components, ranked, smallest
from stitch.circuits.score import answered
from stitch.circuits.shallow import Arrangement, ShallowModel, token_tables
from stitch.models.model import Model
from stitch.progress import Progress

SEARCHED_ON = 8  # prompts that arrangements are compared on


def squeeze(model: Model, prompts: Prompts, depth: int, seed: int = 0, progress: Progress | None = None) -> Arrangement:
    """A greedy search from the whole model to an arrangement in `depth` groups of blocks.

    A step folds the first group into the token table, with or without keeping its heads beside the next group, or merges two
    neighbouring groups. Each time the step is taken after which the answers lose the fewest nats. The cost of a merge is measured
    again only when it would be chosen (lazy greedy, Minoux 1978).
    """
    few = prompts.part(slice(SEARCHED_ON))
    tables = token_tables(model, few.clean.unique(), set(range(model.depth)), seed, progress)

    def cost(arrangement: Arrangement) -> float:
        shallow = ShallowModel(model, arrangement, tables)
        return answered(shallow.logits, few.clean, few)["nats"]

    arrangement, steps = Arrangement.whole(model), itertools.count(1)
    total, most = cost(arrangement), model.depth - depth
    merges = [
        (-float("inf"), block) for block in range(1, model.depth)
    ]  # a heap: cost of merging before a block, the block
    while len(arrangement.groups) > depth:
        options = [(cost(folded) - total, folded) for folded in (arrangement.folded(True), arrangement.folded(False))]
        if (merge := _cheapest_merge(arrangement, merges, total, cost)) is not None:
            options.append(merge)
        added, arrangement = min(options, key=lambda option: option[0])
        total += added
        if progress:
            progress("blocks given up", next(steps), most)
    return arrangement


def _cheapest_merge(
    arrangement: Arrangement, merges: list[tuple[float, int]], total: float, cost: Callable[[Arrangement], float]
) -> tuple[float, Arrangement] | None:
    """The merge that costs least and its result; boundaries that no longer exist are dropped from the heap."""
    while merges:
        _, block = heapq.heappop(merges)
        starts = [group[0] for group in arrangement.groups]
        if block not in starts[1:]:
            continue
        merged = arrangement.merged(starts.index(block) - 1)
        measured = cost(merged) - total
        heapq.heappush(merges, (measured, block))
        if merges[0] == (measured, block):
            return measured, merged
    return None


def within_capacity(
    shallow: ShallowModel,
    prompts: Prompts,
    capacity: Mapping[str, int],
    keep: float,
    progress: Progress | None = None,
) -> ShallowModel:
    """The rearranged model with the fewest components, in order of attribution, that keep a share `keep` of its right answers.

    A group gets at most `capacity["heads"]` heads and `capacity["neurons"]` neurons. If all components that fit keep less, it has
    all of them.
    """
    with_means = replace(shallow, means=shallow.mean_outputs(prompts))
    order = _fitting(with_means, ranked(attribute(with_means, prompts, progress)), capacity)
    tried = itertools.count(1)

    def with_first(size: int) -> ShallowModel:
        return replace(with_means, kept=first_components(shallow.model, order, size))

    def right(candidate: ShallowModel) -> float:
        if progress:
            progress("ablation (sizes, at most)", next(tried), len(order).bit_length() + 7)
        return answered(candidate.logits, prompts.clean, prompts)["right"]

    needed = keep * right(shallow)
    return with_first(smallest(len(order), lambda size: right(with_first(size)) >= needed))


def _fitting(
    shallow: ShallowModel, order: list[tuple[Place, int]], capacity: Mapping[str, int]
) -> list[tuple[Place, int]]:
    """The components of an order that fit into their groups when they are taken one after another."""
    free: dict[tuple[str, int], int] = {}
    fitting = []
    for (kind, block), number in order:
        place = kind, shallow.arrangement.layers[block]
        free[place] = free.get(place, capacity[kind]) - 1
        if free[place] >= 0:
            fitting.append(((kind, block), number))
    return fitting


def attribute(shallow: ShallowModel, prompts: Prompts, progress: Progress | None = None) -> dict[Place, Tensor]:
    """As `stitch.circuits.attribution.attribute`, on the path between the streams that the tables give for the two prompts."""

    def path(part: slice) -> InputPath:
        clean, corrupt = (shallow.inputs(ids[part]) for ids in (prompts.clean, prompts.corrupt))
        ends: list[dict[Place, Tensor]] = [{}, {}]
        with torch.no_grad():
            for inputs, seen in zip((clean, corrupt), ends, strict=True):
                shallow.run(inputs, seen)

        def at(share: float) -> OutputsAndLogits:
            between = {block: (x + share * (clean[block] - x)).requires_grad_() for block, x in corrupt.items()}
            seen: dict[Place, Tensor] = {}
            last = shallow.run(between, seen)
            return seen, shallow.last(last[prompts.asked[part].to(shallow.model.device)])

        return ends[0], ends[1], at

    return integrated(shallow.model, prompts, path, progress=progress)
