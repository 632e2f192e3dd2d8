"""Chooses the layer of model B at which a composite continues, for a given layer of model A."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from stitch.composite.costs import Costs
from stitch.errors import UsageError
from stitch.layers.cells import INPUTS, score_cells
from stitch.layers.pareto import best_within
from stitch.layers.streams import Cell, Side, harvest_all
from stitch.models.model import Model
from stitch.progress import Progress
from stitch.text.documents import Split
from stitch.text.windows import Windows

RULE = (
    "the lowest cross-entropy on the sweep split among layers 1 to depth - 1 of the target with which the composite costs "
    "no more FLOPs per token (translation included) than the costlier of the two models; the cheapest where none does"
)
FIT, HELD_OUT = 50_000, 8_192  # at most this many tokens: a choice among layers needs fewer than a report


def best_layer(flops: Mapping[int, float], ce: Mapping[int, float], budget: float) -> int:
    """The layer that `RULE` chooses. Layer 0 is left out, as the whole target runs there and the source would not matter.

    `flops` per token has every layer that may be chosen; `ce`, in nats, has at least those within `budget`. Ties go to the
    cheaper layer.
    """
    layers = sorted(flops)
    return layers[best_within([(flops[layer], ce.get(layer, float("inf"))) for layer in layers], budget)]


def eligible(costs: Costs, site: int) -> dict[int, float]:
    """FLOPs per token of the composite, by layer of the target, for all layers that may be chosen."""
    multiply_adds = costs.source.width * costs.target.width
    return {onto: costs.flops(site, onto, multiply_adds) for onto in range(1, costs.target.depth)}


def check_choosable(layer: int, target: Model) -> None:
    """Raises UsageError when the rule has no layer to choose from."""
    if layer < 1:
        raise UsageError(f"`layer_b=auto` needs a `layer` of at least 1; got {layer}: set `layer_b` to a number.")
    if target.depth < 2:
        raise UsageError(
            f"`layer_b=auto` needs at least 2 blocks; {target.name} has {target.depth}: set `layer_b` to a number."
        )


def choose_layer(
    a: Model,
    b: Model,
    layer: int,
    windows: dict[Split, Windows],
    folder: Path,
    *,
    memory: int,
    progress: Progress | None = None,
) -> dict:
    """The layer of B that `RULE` chooses for `layer` of A, with the reasons, as report.json has it; "b" is the layer's number.

    The fast translations are fitted on a part of the fit split and scored on a part of the sweep split. Layers that cost too much
    are not scored. Harvests are written to `folder`, which is deleted afterwards. `memory` is in bytes.
    Raises: UsageError as `check_choosable` and `score_cells`.
    """
    check_choosable(layer, b)
    costs = Costs(a, b, windows["fit"].context)
    flops, budget = eligible(costs, layer), costs.costlier_donor
    affordable = [onto for onto in flops if flops[onto] <= budget]
    ce: dict[int, float] = {}
    if len(affordable) > 1:
        models: dict[Side, Model] = {"a": a, "b": b}
        limits: dict[Split, int] = {"fit": FIT, "sweep": HELD_OUT}
        harvests = {
            split: harvest_all(
                models, windows[split].first(tokens), {"a": [layer], "b": affordable}, folder / split, memory, progress
            )
            for split, tokens in limits.items()
        }
        cells = [Cell("a", layer, "b", onto) for onto in affordable]
        scored = score_cells(
            models,
            cells,
            harvests["fit"],
            {"sweep": harvests["sweep"]},
            reference=None,
            memory=memory,
            progress=progress,
        )
        ce = {cell.j: min(scored.rows[cell][name].scores["sweep"].ce for name in INPUTS) for cell in cells}
        shutil.rmtree(folder)
    chosen = best_layer(flops, ce, budget)
    return {
        "b": chosen,
        "rule": RULE,
        "budget_flops": budget,
        "translations": list(INPUTS),
        "layers": [{"b": onto, "flops": flops[onto], "ce": ce.get(onto)} for onto in flops],
    }
