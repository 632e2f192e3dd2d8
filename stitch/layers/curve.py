"""The loss of a model whose heads all know only their strongest keys, beside its nulls."""

from collections.abc import Sequence

import torch
from torch import Tensor

from stitch.evaluation.scores import Batch, Logits, Scores, evaluate, whole_model
from stitch.internals.attention import Attend, Attended, attending
from stitch.layers.keys import at_random, dropped, equalised, permuted, strongest
from stitch.models.model import Model
from stitch.progress import Progress
from stitch.text.windows import Windows

WAYS = ("equalised", "permuted", "dropped", "null:random keys")  # what becomes of the other keys


def score_keys(
    model: Model,
    windows: Windows,
    sizes: Sequence[int],
    *,
    seed: int = 0,
    memory: int = 2**30,
    progress: Progress | None = None,
) -> dict[str, Scores]:
    """Scores of the model, and by `name_of` of the model in which each head keeps so many keys and the others change.

    `equalised`: the others share their probability; `permuted`: they exchange it; `dropped`: they lose it; `null:random keys`: as
    `equalised`, but the keys that are kept are drawn from all.
    """
    rows: dict[str, Logits] = {"model": whole_model(model.net)}
    for size in sizes:
        for way in WAYS:
            rows[name_of(size, way)] = _row(model, _attend(way, size, seed))
    return evaluate(
        rows, windows, vocabulary=model.vocabulary, reference=rows["model"], memory=memory, progress=progress,
        task="keys (tokens)",
    )  # fmt: skip


def name_of(size: int, way: str) -> str:
    return f"{size} keys, {way}"


def _row(model: Model, attend: Attend) -> Logits:
    whole = whole_model(model.net)

    def logits(batch: Batch) -> Tensor:
        with attending(model, attend):
            return whole(batch)

    return logits


def _attend(way: str, size: int, seed: int) -> Attend:
    generator = torch.Generator().manual_seed(seed)

    def attend(seen: Attended) -> Tensor:
        kept = at_random(seen, size, generator) if way == "null:random keys" else strongest(seen, size)
        if way == "permuted":
            pattern = permuted(seen, kept, generator)
        else:
            pattern = dropped(seen, kept) if way == "dropped" else equalised(seen, kept)
        return pattern.to(seen.values) @ seen.values

    return attend
