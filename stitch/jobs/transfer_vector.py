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
from stitch.jobs.transfer import Loaded, Sites, transfer
from stitch.progress import Progress
from stitch.text.windows import Windows
from stitch.transfers.effects import Effects, correlation, size, with_interval
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
    `side`, by how much it is above that of the model as it is. All have intervals over documents. Rows: A steered with the
    vectors; B with them carried; through a Procrustes map, a random one, and as they are.
    Raises: UsageError when the file or the request do not fit.
    """

    def read(loaded: Loaded) -> Vectors:
        return read_vectors(file, loaded.a.width)

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
    windows = stage.windows
    effects = Effects(torch.bincount(windows.document[:, 1:].flatten().long()).double(), stage.vocabulary)
    rows = {name: _recorded(name, row, effects, windows) for name, row in logits.items()}
    scores = evaluate(rows, windows, vocabulary=stage.vocabulary, memory=stage.memory, progress=sites.progress)
    results = [
        {key: value for key, value in scores[name].row(name).items() if key not in ("kl_to_b", "top1")}
        for name in plain
    ]
    for row in steered:
        before = "a" if row == "a steered" else "b"
        here = [effects.change(f"{row}/{name}", before) for name in names]
        there = [effects.change(f"a steered/{name}", "a") for name in names]
        total = mean_of([scores[f"{row}/{name}"] for name in names])
        results.append({
            "name": row, **_ends("ce", (total.ce, *total.interval())),
            **_ends("side", (total.ce - scores[before].ce, *total.interval(minus=scores[before]))),
            **_ends("effect", with_interval(correlation, here, there)), **_ends("size", with_interval(size, here, there)),
        })  # fmt: skip
    return {"vectors": len(names), "documents": counted(scores["b"]), "results": results}


def _ends(key: str, found: tuple[float, float, float]) -> dict[str, float]:
    return dict(zip((key, f"{key}_low", f"{key}_high"), found, strict=True))


def _each(vectors: Vectors) -> Iterator[tuple[str, Float[Tensor, " d"]]]:
    """Every single vector with a name of its own."""
    for name, found in vectors.items():
        for number, one in enumerate(found if found.ndim == 2 else found[None]):
            yield (name if found.ndim == 1 else f"{name}.{number}"), one


def _steered(late, stream: Float[Tensor, "windows context d"], vector: Float[Tensor, " d"] | None) -> Logits:
    """The logits of a late half on its own stream, to which `vector` is added at every token but BOS."""

    def logits(batch: Batch) -> Tensor:
        own = stream[batch.rows].to(late.net.device)
        if vector is not None:
            own = own.clone()
            own[:, 1:] += vector.to(own)
        return late_logits(late, own, ids=batch.ids.to(own.device))

    return logits


def _recorded(name: str, row: Logits, effects: Effects, windows: Windows) -> Logits:
    """The same logits. The log probabilities of every token after all tokens but BOS are added to the sums of `name`."""

    def logits(batch: Batch) -> Tensor:
        found = row(batch)
        effects.add(name, found[:, 1:].flatten(0, 1), windows.document[batch.rows][:, 1:].flatten().long())
        return found

    return logits
