"""What the composites of a sweep must beat: models made of one of the two alone, from the same text."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from stitch.composite.costs import Cost, Costs
from stitch.evaluation.scores import Scores, evaluate
from stitch.frontier.alternative import Means
from stitch.frontier.own_tables import at_every_depth
from stitch.layers.cells import ScoredCells
from stitch.layers.streams import Cell, Harvest, Side
from stitch.models.model import Model

Kind = Literal["whole", "tables", "cut", "no-source"]


@dataclass(frozen=True)
class Rival:
    """A model made of one model alone: how, in words, its cost, and its scores by split."""

    side: Side
    kind: Kind
    made: str
    cost: Cost
    scores: dict[str, Scores]


def own_cells(models: dict[Side, Model]) -> list[Cell]:
    """Each model joined to itself with blocks left out: what a composite of both does, without the other. None where both are
    the same, as the composites are these then."""
    if models["a"] is models["b"]:
        return []
    return [
        Cell(side, i, side, j)
        for side, model in models.items()
        for i in range(1, model.depth)
        for j in range(i + 1, model.depth + 1)
    ]


def whole_models(models: dict[Side, Model], scores: dict[Side, dict[str, Scores]], context: int) -> dict[Side, Rival]:
    """Both models as they are."""
    return {
        side: Rival(side, "whole", model.name, Costs(model, model, context).whole_source, scores[side])
        for side, model in models.items()
    }


def from_cells(models: dict[Side, Model], found: ScoredCells, context: int) -> Iterator[Rival]:
    """Models with blocks left out, exits among them, and late blocks that read their embedding alone."""
    costs = {side: Costs(model, model, context) for side, model in models.items()}
    for cell in own_cells(models):
        model = models[cell.source]
        for name, row in found.rows[cell].items():
            made = f"{_without(model, cell)} ({name})"
            cost = costs[cell.source].joined(cell.i, cell.j, row.seam)
            yield Rival(cell.source, "cut", made, cost, row.scores)
    for side, site in sorted(found.nulls):  # whatever the order in which they were scored
        if site:  # with all its blocks it is the whole model
            row = found.nulls[side, site]
            made = f"{models[side].name} from block {site} of {models[side].depth} on, which reads its embedding alone"
            cost = costs[side].without_source(site, row.seam, row.reads_embedding)
            yield Rival(side, "no-source", made, cost, row.scores)


def _without(model: Model, cell: Cell) -> str:
    if cell.j == model.depth:
        return f"{model.name} with an exit after {cell.i} of {model.depth} blocks"
    removed = f"block {cell.i}" if cell.j == cell.i + 1 else f"blocks {cell.i} to {cell.j - 1}"
    return f"{model.name} without {removed} of {model.depth}"


@torch.no_grad()
def with_tables(models: dict[Side, Model], means: Means, held_out: dict[str, Harvest]) -> Iterator[Rival]:
    """Both models, or one if they are the same, with their first blocks as n-gram tables, at every depth and of several sizes."""
    vocabulary = min(model.vocabulary for model in models.values())
    for side, model in models.items():
        if side == "b" and model is models["a"]:
            continue
        for one in at_every_depth(model, means):
            scores = {
                split: evaluate({"tables": one.logits}, text.windows, vocabulary=vocabulary, memory=means.memory)[
                    "tables"
                ]
                for split, text in held_out.items()
            }
            yield Rival(side, "tables", one.made, one.cost, scores)
