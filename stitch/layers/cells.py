"""Closed-form translations for many pairs of sites at once, fitted from shared sums and scored in the target model.

One pass over the tokens accumulates the sums of all pairs. Σ xᵀx of a site serves every pair that has it, Σ xᵀy of a pair serves
both directions. Pairs whose sums exceed the memory budget together are divided into groups, with one pass for each.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from stitch.composite.compose import late_half
from stitch.composite.costs import Cost, of_translation
from stitch.errors import UsageError
from stitch.evaluation.scores import Logits, Scores, evaluate, whole_model
from stitch.evaluation.stage import Stage
from stitch.layers.streams import Cell, Harvest, Side
from stitch.modeling.modeling_halves import Half
from stitch.models.model import Model
from stitch.progress import Progress
from stitch.regression.moments import Key, Moments, accumulate
from stitch.regression.ridge import Ridge, ridge
from stitch.text.windows import Windows
from stitch.translation.inputs import ByToken
from stitch.translation.token_tables import token_tables
from stitch.translation.types import Residual, Term, Translation

INPUTS = {"affine": ("x",), "affine+token": ("x", "embedding")}  # what each fast translation reads
NULL = "no-source"  # reads only the target's embedding: what can be predicted without a source


@dataclass(frozen=True)
class CellRow:
    """One translation of a cell, or its null: scores by split, the translation's cost, the ridge strength λ, and the share of the
    target's variance that the fit leaves unexplained. `reads_embedding`: whether tokens without a row need the source's."""

    scores: dict[str, Scores]
    seam: Cost
    strength: float
    unexplained: float
    reads_embedding: bool


@dataclass(frozen=True)
class ScoredCells:
    """Rows by cell and translation, and nulls by target and site: the target is its own source, of which the embedding alone is
    read."""

    rows: dict[Cell, dict[str, CellRow]]
    nulls: dict[tuple[Side, int], CellRow]


@torch.no_grad()
def score_cells(
    models: dict[Side, Model],
    cells: Sequence[Cell],
    fit: Harvest,
    held_out: dict[str, Harvest],
    *,
    reference: str | None,
    memory: int,
    progress: Progress | None = None,
) -> ScoredCells:
    """Fits the translations of every cell on `fit`, with λ chosen by the error on `held_out["sweep"]`, and scores them on each
    held-out split.

    On the split called `reference`, rows are also compared with the target's own logits (KL, top-1). `memory` is in bytes.
    Raises: UsageError when a single cell does not fit into `memory`.
    """
    embeddings = _embeddings(models, cells, fit.windows, held_out["sweep"].windows)
    tables = {f"embedding.{target}": given for (_, target), given in embeddings.items()}
    widths = {f"{side}.{site}": models[side].width for side in models for site in range(models[side].depth + 1)}
    widths |= {name: given.table.shape[1] for name, given in tables.items()}
    # Whatever the cells, so that rounding does not depend on which of them share a group or a worker.
    columns = sum(model.width * (model.depth + 2) for model in models.values())
    chunk = max(256, min(8192, memory // 8 // (12 * columns)))
    rows: dict[Cell, dict[str, CellRow]] = {}
    nulls: dict[tuple[Side, int], CellRow] = {}
    for group in _groups_within(cells, widths, memory // 4):
        moments = _moments(group, {"fit": fit, "sweep": held_out["sweep"]}, tables, chunk, progress)
        targets: list[tuple[Side, int]] = list(dict.fromkeys((cell.target, cell.j) for cell in group))
        for target, site in targets:
            first = fit.sides[target].read(0, site)[0, 0].float()  # the target's stream for BOS at position 0
            late = late_half(models[target], site)
            cells_here = [cell for cell in group if (cell.target, cell.j) == (target, site)]
            for part in _parts(cells_here, models, fit, held_out, memory // 4):
                keys = [(cell, name) for cell in part for name in INPUTS]
                null = Cell(target, site, target, site), NULL
                if (target, site) not in nulls:
                    keys.append(null)
                fitted = {key: _fit(moments, embeddings, first, *key) for key in keys}
                scored = _score(models, late, fitted, held_out, reference, memory)
                if null in scored:
                    nulls[target, site] = scored.pop(null)
                for (cell, name), row in scored.items():
                    rows.setdefault(cell, {})[name] = row
                if progress:
                    progress("pairs of sites scored", len(rows), len(cells))
    return ScoredCells({cell: rows[cell] for cell in cells}, nulls)


def _moments(
    group: Sequence[Cell],
    harvests: dict[str, Harvest],
    tables: dict[str, ByToken],
    chunk: int,
    progress: Progress | None,
) -> dict[str, Moments]:
    """The sums of products that the translations of a group are solved from, by split; `chunk` tokens are read at a time."""
    pairs = sorted({pair for cell in group for pair in needed_products(cell)})
    names = {name for pair in pairs for name in pair}
    return {
        split: accumulate(_chunks_with_progress(split, harvested, names, tables, chunk, progress), pairs)
        for split, harvested in harvests.items()
    }


def needed_products(cell: Cell) -> set[Key]:
    """The products of variables from which the translations of a cell are solved, each with its variables in alphabetical
    order."""
    x, y, embedding = _names(cell)
    products = ((x, x), (embedding, embedding), (x, embedding), (x, y), (embedding, y))
    return {(first, second) if first <= second else (second, first) for first, second in products}


def _names(cell: Cell) -> tuple[str, str, str]:
    """The names of a cell's variables: source site, target site, and the target's embedding."""
    return f"{cell.source}.{cell.i}", f"{cell.target}.{cell.j}", f"embedding.{cell.target}"


def _groups_within(cells: Sequence[Cell], widths: dict[str, int], budget: int) -> list[list[Cell]]:
    """Cells in groups whose products take at most `budget` bytes in float64, for the fit and the sweep split together."""
    ordered = sorted(cells, key=lambda cell: cell.ends)
    groups: list[list[Cell]] = []
    held: set[Key] = set()
    for cell in ordered:
        union = held | needed_products(cell)
        if not groups or _bytes(union, widths) > budget:
            union = needed_products(cell)
            if _bytes(union, widths) > budget:
                least = 4 * _bytes(union, widths) / 2**30
                raise UsageError(f"memory must be at least {least:.1f}G for models of these widths: raise it.")
            groups.append([])
        groups[-1].append(cell)
        held = union
    return groups


def _bytes(pairs: set[Key], widths: dict[str, int]) -> int:
    """The size of these products in float64, for two splits."""
    return 2 * 8 * sum(widths[first] * widths[second] for first, second in pairs)


def _parts(
    cells: list[Cell], models: dict[Side, Model], fit: Harvest, held_out: dict[str, Harvest], budget: int
) -> Iterator[list[Cell]]:
    """The cells of one target in parts, each with held-out streams of at most `budget` bytes, or a single cell."""
    width = max(models[cell.source].width for cell in cells)
    tokens = max(one.windows.tokens for one in held_out.values())
    per_cell = 4 * tokens * width
    size = max(1, budget // per_cell)
    for start in range(0, len(cells), size):
        yield cells[start : start + size]


def _embeddings(
    models: dict[Side, Model], cells: Sequence[Cell], fit: Windows, held_out: Windows
) -> dict[tuple[Side, Side], ByToken]:
    """The target's embeddings of the tokens that occur, by source and target: other tokens may need the source's embedding.

    Rows are kept once per target.
    """
    pairs: set[tuple[Side, Side]] = {(cell.source, cell.target) for cell in cells}
    pairs |= {(target, target) for _, target in pairs}
    found: dict[tuple[Side, Side], ByToken] = {}
    for source, target in sorted(pairs):
        made = token_tables(models[source], models[target], fit, held_out, None).input("embedding")
        same = next((one for (_, other), one in found.items() if other == target), made)
        found[source, target] = replace(made, table=same.table, keys=same.keys)
    return found


def _chunks_with_progress(
    split: str, harvested: Harvest, names: set[str], tables: dict[str, ByToken], chunk: int, progress: Progress | None
) -> Iterator[dict[str, Tensor]]:
    done, total = 0, int(harvested.keep.sum())
    for variables in harvested.chunks(names, tables, chunk):
        yield variables
        done += len(next(iter(variables.values())))
        if progress:
            progress(f"moments of the {split} split (tokens)", done, total)


def _fit(
    moments: dict[str, Moments],
    embeddings: dict[tuple[Side, Side], ByToken],
    first: Float[Tensor, " d"],
    cell: Cell,
    name: str,
) -> tuple[Translation, Ridge]:
    """The translation called `name` of a cell, solved from the moments. `first` is its output for BOS at position 0."""
    x, y, embedding = _names(cell)
    inputs = (embedding,) if name == NULL else tuple({"x": x, "embedding": embedding}[kind] for kind in INPUTS[name])
    found = ridge(moments["fit"], moments["sweep"], inputs, target=y)
    terms = [
        Term(Residual(cell.i), weight.float()) if variable == x else embeddings[cell.source, cell.target].term(weight)
        for variable, weight in found.weights.items()
    ]
    return Translation(name, tuple(terms), found.bias.float(), first), found


def _score(
    models: dict[Side, Model],
    late: Half,
    fitted: dict[tuple[Cell, str], tuple[Translation, Ridge]],
    held_out: dict[str, Harvest],
    reference: str | None,
    memory: int,
) -> dict[tuple[Cell, str], CellRow]:
    """Rows of fitted translations that all end at the same site of one target, whose later blocks are `late`."""
    scores: dict[tuple[Cell, str], dict[str, Scores]] = {key: {} for key in fitted}
    target = models[next(iter(fitted))[0].target]
    for split, harvested in held_out.items():
        stages = {
            cell: Stage(models[cell.source], target, cell.i, cell.j, harvested.paired(cell), memory, late)
            for cell in dict.fromkeys(cell for cell, _ in fitted)
        }
        labels = {f"{cell.source}.{cell.i} {name}": (cell, name) for cell, name in fitted}
        logits: dict[str, Logits] = {label: stages[key[0]].translated(fitted[key][0]) for label, key in labels.items()}
        found = evaluate(
            logits,
            harvested.windows,
            vocabulary=min(model.vocabulary for model in models.values()),
            reference=whole_model(target.net) if split == reference else None,
            memory=memory,
        )
        for label, key in labels.items():
            scores[key][split] = found[label]
    return {
        key: CellRow(
            scores[key],
            of_translation(translation, models[key[0].source], target, key[0].i),
            found.strength,
            found.unexplained,
            translation.reads_embedding,
        )
        for key, (translation, found) in fitted.items()
    }
