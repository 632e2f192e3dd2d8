"""Fits edits that make a model without the document predict as it does with it: natural gradient, closed form, plain training."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stitch.conversions.consolidation.queries import BATCH, GIVEN, LabelledQueries, predictions, unrelated_prefixes
from stitch.conversions.consolidation.slow_weights import (
    Coordinates,
    Curvature,
    Edit,
    Parameters,
    down_projection,
    edit_norm,
    edited_parameters,
    logits_with,
    ridge,
)
from stitch.errors import StitchError
from stitch.models.model import Model
from stitch.progress import Progress, counted
from stitch.text.tokenizers import bos_of
from stitch.text.windows import Windows

STEPS, PER_STEP = 8, 24  # steps of the natural gradient, and queries per step
SHARE = 0.15  # of the budget: predicted cost of the largest edit. Its measured cost is several times as high
RATE, MOMENTUM = 0.5, 0.5
STRENGTH = 1.0  # of the ridge penalty in the closed form


def _prefix_lengths(query: int) -> tuple[int, int, int]:
    """Lengths of the prefixes in a fit: none, short and long, so that the edit does not depend on the query's position."""
    return 0, query // 4, query


def batches(
    labelled: LabelledQueries, pool: Windows, count: int, steps: int, seed: int
) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """For each step, the indices of `count` queries and their prefixes, in groups of equal prefix length."""
    generator = torch.Generator().manual_seed(seed)
    lengths = _prefix_lengths(labelled.queries.shape[1])
    for _ in range(steps):
        chosen = torch.randperm(len(labelled.queries), generator=generator)[:count]
        groups = zip(lengths, chosen.tensor_split(len(lengths)), strict=True)
        yield [(rows, unrelated_prefixes(pool, len(rows), size, generator)) for size, rows in groups if len(rows)]


def _loss(
    model: Model,
    labelled: LabelledQueries,
    rows: Tensor,
    prefixes: Tensor,
    changed: Parameters,
    labels: Literal["donor", "text"],
) -> Float[Tensor, ""]:
    """Mean nats per scored token: KL(with context ‖ edited without) for the labels "donor", cross-entropy for "text"."""
    predicted = predictions(model, prefixes, labelled.queries[rows], changed, labelled.given)
    if labels == "text":
        answers = labelled.queries[rows][:, labelled.given :].to(predicted.device)
        return -predicted.gather(2, answers[..., None]).mean()
    target = labelled.target[rows.to(labelled.target.device)]
    return (target.exp() * (target - predicted)).sum(2).mean()


def _gradient(
    model: Model,
    labelled: LabelledQueries,
    groups: list[tuple[Tensor, Tensor]],
    edit: Edit,
    labels: Literal["donor", "text"],
) -> Edit:
    """Gradient of the mean loss over the groups, by block. Raises StitchError if it is not finite."""
    leaves = {block: change.detach().requires_grad_() for block, change in edit.items()}
    total: Edit = {}
    for rows, prefixes in groups:
        loss = _loss(model, labelled, rows, prefixes, edited_parameters(model, leaves), labels) * len(rows)
        for block, part in zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True):
            total[block] = total.get(block, 0) + part
    count = sum(len(rows) for rows, _ in groups)
    if not all(torch.isfinite(part).all() for part in total.values()):
        raise StitchError("gradients must be finite; got NaN or infinity: set `dtype` to fp32.")
    return {block: part / count for block, part in total.items()}


def zero_edit(model: Model) -> Edit:
    """An edit of every block that changes nothing."""
    return {b: torch.zeros(down_projection(model, b).shape, device=model.device) for b in range(model.depth)}


def natural_gradient(
    model: Model,
    labelled: LabelledQueries,
    pool: Windows,
    axes: Coordinates,
    *,
    reach: float,
    steps: int = STEPS,
    count: int = PER_STEP,
    seed: int = 0,
    progress: Progress | None = None,
) -> Edit:
    """Minimises KL(with context ‖ edited without) over the queries, each after unrelated text, subject to ½|V|² ≤ reach.

    Normalised gradient descent with momentum in the coordinates V of `axes`, where ½|V|² is the predicted cost on other text,
    with projection onto the ball. A single step is the closed form ΔW = −C⁻¹ (Σ h gᵀ) G⁻¹: the ridge of MEMIT with the residual
    R = −G⁻¹g given by the loss.
    """
    radius = (2 * reach) ** 0.5
    point, momentum = zero_edit(model), zero_edit(model)
    told = counted(batches(labelled, pool, count, steps, seed), "natural gradient (steps)", progress, steps)
    for number, groups in enumerate(told):
        raw = _gradient(model, labelled, groups, axes.edit(point), "donor")
        slope = {b: axes.left[b] @ one @ axes.right[b] for b, one in raw.items()}
        size = max(edit_norm(slope), 1e-30)
        momentum = {b: MOMENTUM * momentum[b] + (1 - MOMENTUM) / size * slope[b] for b in slope}
        rate = radius * RATE * (1 - number / steps) if steps > 1 else radius / max(edit_norm(momentum), 1e-30)
        point = {b: one - rate * momentum[b] for b, one in point.items()}
        if (far := edit_norm(point)) > radius:
            point = {b: one * (radius / far) for b, one in point.items()}
    return axes.edit(point)


def train(
    model: Model,
    labelled: LabelledQueries,
    pool: Windows,
    *,
    optimiser: Literal["sgd", "adamw"],
    rate: float,
    labels: Literal["donor", "text"],
    steps: int = STEPS,
    count: int = PER_STEP,
    seed: int = 0,
    progress: Progress | None = None,
) -> Edit:
    """Baseline: the same matrices trained with a standard optimiser."""
    edit = zero_edit(model)
    leaves = [one.requires_grad_() for one in edit.values()]
    stepper = (torch.optim.SGD if optimiser == "sgd" else torch.optim.AdamW)(leaves, lr=rate, weight_decay=0)
    for groups in counted(batches(labelled, pool, count, steps, seed), f"{optimiser} (steps)", progress, steps):
        for leaf, part in zip(leaves, _gradient(model, labelled, groups, edit, labels).values(), strict=True):
            leaf.grad = part
        stepper.step()
    return {block: one.detach() for block, one in edit.items()}


@torch.no_grad()
def closed_form(
    model: Model,
    asked: Sequence[tuple[Int[Tensor, " tokens"], Int[Tensor, "queries length"]]],
    pool: Windows,
    curvature: Curvature,
    *,
    strength: float = STRENGTH,
    seed: int = 0,
    progress: Progress | None = None,
) -> Edit:
    """Block after block, ΔW = argmin |K ΔW − R|² + strength · tr(ΔWᵀ C ΔW), as in MEMIT.

    `asked` are documents, each with its queries. K are the neurons without the document. R is the difference between the streams
    leaving the block with and without it, divided by the number of blocks from this one on. Without the document, queries follow
    unrelated prefixes.
    """
    generator = torch.Generator().manual_seed(seed)
    documents, prefixes, parts = [], [], []
    for document, queries in asked:
        for size, some in zip(_prefix_lengths(queries.shape[1]), queries.tensor_split(3), strict=True):
            documents.append(document.expand(len(some), -1))
            prefixes.append(unrelated_prefixes(pool, len(some), size, generator))
            parts.append(some)
    streams: CapturePoints = {str(block): (model.blocks[block], False) for block in range(model.depth)}
    goals = capture(model, streams, documents, parts, {})
    edit: Edit = {}
    for block in counted(range(model.depth), "closed form (blocks)", progress):
        points: CapturePoints = {"keys": (model.down(block), True), "stream": (model.blocks[block], False)}
        found = capture(model, points, prefixes, parts, edited_parameters(model, edit))
        residual = (goals[str(block)] - found["stream"]) / (model.depth - block)
        edit[block] = ridge(found["keys"], residual, curvature.neurons[block], strength).float().to(model.device)
    return edit


CapturePoints = dict[str, tuple[nn.Module, bool]]  # by name: a module, and whether to capture its input or its output


def capture(
    model: Model, points: CapturePoints, prefixes: list[Tensor], queries: Sequence[Tensor], changed: Parameters
) -> dict[str, Float[Tensor, "tokens width"]]:
    """Inputs or outputs of the modules at the positions that predict scored tokens, of all queries in order, on the CPU."""
    found: dict[str, list[Tensor]] = {name: [] for name in points}
    last = queries[0].shape[1] - GIVEN + 1

    def hook(name: str, reads: bool) -> Callable:
        def keep(_: nn.Module, inputs: Any, output: Any) -> None:
            value = inputs if reads else output
            rows = value[0] if isinstance(value, tuple) else value
            found[name].append(rows[:, -last:-1].flatten(0, 1).cpu().float())

        return keep

    hooks = [module.register_forward_hook(hook(name, reads)) for name, (module, reads) in points.items()]
    try:
        for some, before in zip(queries, prefixes, strict=True):
            for rows, prefix in zip(some.split(BATCH), before.split(BATCH), strict=True):
                bos = torch.full((len(rows), 1), bos_of(model.tokenizer))
                logits_with(model, changed, torch.cat([bos, prefix, rows], 1), logits_to_keep=1)
    finally:
        for one in hooks:
            one.remove()
    return {name: torch.cat(rows) for name, rows in found.items()}


def random_direction(like: Edit, seed: int = 0) -> Edit:
    """Null: noise of the same norm in every block."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {block: torch.randn(one.shape, generator=generator).to(one.device) for block, one in like.items()}
    return {block: one * (like[block].norm() / one.norm()) for block, one in drawn.items()}
