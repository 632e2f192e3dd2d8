"""`stitch transfer vector`: steering vectors of A rewritten for B, with what they do to the next token in both models."""

from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from stitch.composite.compose import late_half, late_logits
from stitch.config import Settings
from stitch.evaluation.documents import counted
from stitch.evaluation.scores import Batch, Logits, evaluate, mean_of
from stitch.files.store import Store
from stitch.jobs.transfer import Sites, transfer
from stitch.models.model import Model
from stitch.progress import Progress
from stitch.transfers.maps import TRANSFERRED
from stitch.transfers.vectors import Vectors, carried, read_vectors, write

FILE = "vectors.safetensors"


def transfer_vector(
    settings: Settings,
    file: Path,
    out: Path | None = None,
    *,
    strength: float = 1.0,
    overwrite: bool = False,
    store: Store | None = None,
    progress: Progress | None = None,
) -> tuple[dict, Path]:
    """Rewrites the steering vectors in `file` for B's site, and writes them to `out`/vectors.safetensors.

    For each vector, `strength` times it is added to the stream at every token. Its effect is the mean change of every token's
    log probability over held-out text. Rows have, averaged over vectors: `effect`, the correlation over the vocabulary of the
    effect in B with that in A; `size`, the ratio of their standard deviations; the cross-entropy of the steered model, and
    `side`, by how much it is above that of the model as it is. Rows: A steered with the vectors; B with them carried; through a
    Procrustes map, a random one, and as they are.
    Raises: UsageError when the file or the request do not fit.
    """

    def read(a: Model, b: Model) -> Vectors:
        return read_vectors(file, a.width)

    def make(sites: Sites, vectors: Vectors, output: Path) -> dict:
        moved = {name: carried(vectors, maps) for name, maps in sites.maps.items()}
        with sites.clock.stage("evaluation"):
            report = _scored(sites, vectors, moved, strength)
        write(moved[TRANSFERRED], output / FILE)
        return {"kind": "vector", "chosen": TRANSFERRED, "strength": strength, **report}

    request = {"file": str(file), "strength": strength}
    return transfer("vector", settings, out, read, make, request, overwrite=overwrite, store=store, progress=progress)


def _scored(sites: Sites, vectors: Vectors, moved: dict[str, Vectors], strength: float) -> dict:
    stage = sites.stage
    late_a, stream_a = late_half(sites.a, sites.settings.layer), stage.stream(sites.settings.layer)
    plain: dict[str, Logits] = {"a": _steered(late_a, stream_a, None), "b": _steered(stage.late, stage.y, None)}
    names = [name for name, _ in _each(vectors)]
    steered: dict[str, dict[str, Logits]] = {
        "a steered": {name: _steered(late_a, stream_a, strength * one) for name, one in _each(vectors)},
        **{
            row: {name: _steered(stage.late, stage.y, strength * one) for name, one in _each(found)}
            for row, found in moved.items()
        },
    }
    logits = {**plain, **{f"{row}/{name}": one for row, found in steered.items() for name, one in found.items()}}
    effects = {name: torch.zeros(stage.vocabulary, dtype=torch.float64) for name in logits}
    rows = {name: _recorded(row, effects[name]) for name, row in logits.items()}
    scores = evaluate(rows, stage.windows, vocabulary=stage.vocabulary, memory=stage.memory, progress=sites.progress)
    predictions = stage.windows.tokens - len(stage.windows.ids)
    effects = {name: total / predictions for name, total in effects.items()}
    results = [
        {key: value for key, value in scores[name].row(name).items() if key not in ("kl_to_b", "top1")}
        for name in plain
    ]
    for row in steered:
        before = "a" if row == "a steered" else "b"
        here = [effects[f"{row}/{name}"] - effects[before] for name in names]
        there = [effects[f"a steered/{name}"] - effects["a"] for name in names]
        total = mean_of([scores[f"{row}/{name}"] for name in names])
        low, high = total.interval(minus=scores[before])
        results.append({
            "name": row, "ce": total.ce, **dict(zip(("ce_low", "ce_high"), total.interval(), strict=True)),
            "side": total.ce - scores[before].ce, "side_low": low, "side_high": high,
            "effect": sum(map(_correlation, here, there)) / len(names),
            "size": sum(float(h.std() / t.std().clamp_min(1e-12)) for h, t in zip(here, there, strict=True)) / len(names),
        })  # fmt: skip
    return {"vectors": len(names), "documents": counted(scores["b"]), "results": results}


def _each(vectors: Vectors) -> Iterator[tuple[str, Float[Tensor, " d"]]]:
    """Every single vector with a name of its own."""
    for name, found in vectors.items():
        for number, one in enumerate(found if found.ndim == 2 else found[None]):
            yield (name if found.ndim == 1 else f"{name}.{number}"), one


def _steered(late, stream: Float[Tensor, "windows context d"], vector: Float[Tensor, " d"] | None) -> Logits:
    """The logits of a late half on its own stream, to which `vector` is added at every token but BOS."""

    def logits(batch: Batch) -> Tensor:
        own = stream[batch.rows].to(late.device)
        if vector is not None:
            own = own.clone()
            own[:, 1:] += vector.to(own)
        return late_logits(late, own)

    return logits


def _recorded(row: Logits, total: Float[Tensor, " vocabulary"]) -> Logits:
    """The same logits. The log probabilities of every token, summed over all predictions, are added to `total`."""

    def logits(batch: Batch) -> Tensor:
        found = row(batch)
        total.add_(found[:, 1:, : len(total)].float().log_softmax(-1).sum((0, 1)).double().cpu())
        return found

    return logits


def _correlation(one: Float[Tensor, " n"], other: Float[Tensor, " n"]) -> float:
    return float(torch.corrcoef(torch.stack([one, other]))[0, 1].nan_to_num())
