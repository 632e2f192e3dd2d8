"""The arrangement of a model in so many blocks that keeps most of a behaviour, and the components of it that fit a host."""

import heapq
import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from stitch.circuits.attribution import integrated
from stitch.circuits.behaviours import Prompts
from stitch.circuits.components import Components, Place
from stitch.circuits.find import ranked, smallest
from stitch.circuits.score import answered
from stitch.circuits.shallow import Arrangement, ShallowModel, token_tables
from stitch.models.model import Model
from stitch.progress import Progress

SEARCHED_ON = 8  # prompts that arrangements are compared on


def squeeze(model: Model, of: Prompts, depth: int, seed: int = 0, progress: Progress | None = None) -> Arrangement:
    """Greedy: from the whole model to `depth` groups of blocks, each time the step after which the answers cost fewest nats. A
    step folds the first group into the table, with its heads beside the next or without, or makes two neighbours one.

    Costs of merging are taken as they were last measured until they come first (lazy greedy, Minoux 1978).
    """
    few = of.part(slice(SEARCHED_ON))
    known = token_tables(model, few.clean.unique(), set(range(model.depth)), seed, progress)

    def cost(arrangement: Arrangement) -> float:
        shallow = ShallowModel(model, arrangement, known)
        return answered(shallow.logits, few.clean, few)["nats"]

    now, steps = Arrangement.whole(model), itertools.count(1)
    total, most = cost(now), model.depth - depth
    waiting = [(-float("inf"), block) for block in range(1, model.depth)]  # by what merging before this block costs
    while len(now.groups) > depth:
        options = [(cost(one) - total, one) for one in (now.folded(True), now.folded(False))]
        if (merge := _cheapest(now, waiting, total, cost)) is not None:
            options.append(merge)
        more, now = min(options, key=lambda option: option[0])
        total += more
        if progress:
            progress("blocks given up", next(steps), most)
    return now


def _cheapest(
    now: Arrangement, waiting: list[tuple[float, int]], total: float, cost: Callable[[Arrangement], float]
) -> tuple[float, Arrangement] | None:
    """The merge that costs least, and what; boundaries that are gone leave the heap."""
    while waiting:
        _, block = heapq.heappop(waiting)
        starts = [group[0] for group in now.groups]
        if block not in starts[1:]:
            continue
        merged = now.merged(starts.index(block) - 1)
        fresh = cost(merged) - total
        heapq.heappush(waiting, (fresh, block))
        if waiting[0] == (fresh, block):
            return fresh, merged
    return None


def within_capacity(
    shallow: ShallowModel,
    of: Prompts,
    most: Mapping[str, int],
    keep: float,
    progress: Progress | None = None,
) -> ShallowModel:
    """With the fewest components, by attribution, that keep a share `keep` of its right answers; at most so many heads and
    neurons per block as `most` says. All that fit, if they keep less."""
    means = shallow.mean_outputs(of)
    found = replace(shallow, means=means)
    room: dict[tuple[str, int], int] = {}
    order = []
    for (kind, block), number in ranked(attribute(found, of, progress)):
        place = kind, shallow.arrangement.layers[block]
        room[place] = room.get(place, most[kind]) - 1
        if room[place] >= 0:
            order.append(((kind, block), number))
    tried = itertools.count(1)

    def with_first(size: int) -> ShallowModel:
        kept = Components.none(shallow.model)
        for place, number in order[:size]:
            kept.masks[place][number] = True
        return replace(found, kept=kept)

    def right(one: ShallowModel) -> float:
        if progress:
            progress("ablation (sizes, at most)", next(tried), len(order).bit_length() + 7)
        return answered(one.logits, of.clean, of)["right"]

    wanted = keep * right(shallow)
    return with_first(smallest(len(order), lambda size: right(with_first(size)) >= wanted))


def attribute(shallow: ShallowModel, of: Prompts, progress: Progress | None = None) -> dict[Place, Tensor]:
    """As `stitch.circuits.attribution.attribute`, on the way from corrupt to clean tables."""

    def way(part: slice):
        clean, corrupt = (shallow.inputs(ids[part]) for ids in (of.clean, of.corrupt))
        ends: list[dict[Place, Tensor]] = [{}, {}]
        with torch.no_grad():
            for inputs, seen in zip((clean, corrupt), ends, strict=True):
                shallow.run(inputs, seen)

        def at(share: float) -> tuple[dict[Place, Tensor], Tensor]:
            between = {block: (x + share * (clean[block] - x)).requires_grad_() for block, x in corrupt.items()}
            seen: dict[Place, Tensor] = {}
            last = shallow.run(between, seen)
            return seen, shallow.last(last[of.asked[part].to(shallow.model.device)])

        return ends[0], ends[1], at

    return integrated(shallow.model, of, way, progress=progress)
