"""`stitch transfer vector`: steering vectors of A rewritten for B, with what they do to the next token in both models."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from stitch.composite.compose import late_half, late_logits
from stitch.config import Settings
from stitch.evaluation.documents import counted
from stitch.evaluation.scores import Batch, Logits, Scores, mean_of
from stitch.files.lent import lent_file
from stitch.files.store import Store
from stitch.jobs.transfer import Loaded, transfer
from stitch.jobs.transfer_sites import Side, Sites
from stitch.progress import Progress
from stitch.text.windows import Windows
from stitch.transfers.effects import Effects, correlation, groups, size, with_interval
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
    vectors; B with them carried; through a Procrustes map, a random one, and as they are. Where the models read different tokens,
    effects are compared over those that stand for the same bytes.
    Raises: UsageError when the file or the request do not fit.
    """

    def read(loaded: Loaded) -> Vectors:
        return read_vectors(lent_file(file), loaded.a.width)

    def make(sites: Sites, vectors: Vectors, output: Path) -> dict:
        moved = {name: carried(vectors, maps) for name, maps in sites.maps.items()}
        with sites.clock.stage("evaluation"):
            report = _scored(sites, vectors, moved, strength)
        write(moved[TRANSFERRED], output / FILE)
        return {"kind": "vector", "chosen": TRANSFERRED, "strength": strength, **report}

    request = {"file": str(file), "strength": strength}
    return transfer("vector", settings, out, read, make, request, overwrite=overwrite, store=store, progress=progress)


def _scored(sites: Sites, vectors: Vectors, moved: dict[str, Vectors], strength: float) -> dict:
    side_a, side_b = sites.side_a, sites.side_b
    late_a, stream_a = late_half(sites.a, sites.settings.layer), partial(side_a.stage.stream, sites.settings.layer)
    late_b, stream_b = side_b.stage.late, side_b.stage.y
    names = [name for name, _ in _each(vectors)]
    of_a = {"a": _steered(late_a, stream_a, None)}
    of_a |= {f"a steered/{name}": _steered(late_a, stream_a, strength * one) for name, one in _each(vectors)}
    of_b = {"b": _steered(late_b, stream_b, None)}
    for row, found in moved.items():
        of_b |= {f"{row}/{name}": _steered(late_b, stream_b, strength * one) for name, one in _each(found)}
    documents = _tokens_by_document(side_a, side_b)
    group = groups(documents[0] + documents[1])
    effects_a, effects_b = (
        Effects(tokens, side.stage.vocabulary, group) for tokens, side in zip(documents, (side_a, side_b), strict=True)
    )
    scores = _scores(side_a, of_a, effects_a, sites) | _scores(side_b, of_b, effects_b, sites)
    same_a, same_b = (slice(None),) * 2 if sites.across is None else (sites.across.shared_a, sites.across.shared_b)
    there = [effects_a.change(f"a steered/{name}", "a")[:, same_a] for name in names]
    results = [side_a.row("a", scores["a"]), side_b.row("b", scores["b"])]
    for row in ("a steered", *moved):
        side, before = (side_a, "a") if row == "a steered" else (side_b, "b")
        here = there
        if before == "b":
            here = [effects_b.change(f"{row}/{name}", "b")[:, same_b] for name in names]
        total = mean_of([scores[f"{row}/{name}"] for name in names])
        cost = {
            **_ends("ce", (total.ce, *total.interval())),
            **_ends("side", (total.ce - scores[before].ce, *total.interval(minus=scores[before]))),
        }
        results.append({
            "name": row, **side.in_bits(cost),
            **_ends("effect", with_interval(correlation, here, there)), **_ends("size", with_interval(size, here, there)),
        })  # fmt: skip
    return {"vectors": len(names), "documents": counted(scores["b"]), "results": results}


def _tokens_by_document(*sides: Side) -> list[Float[Tensor, " documents"]]:
    """The predicted tokens of every document, on each side: both have the same documents."""
    owners = [side.windows.document[:, 1:].flatten().long() for side in sides]
    number = max(int(side.windows.document.max()) for side in sides) + 1
    return [torch.bincount(owner, minlength=number).double() for owner in owners]


def _scores(side: Side, rows: dict[str, Logits], effects: Effects, sites: Sites) -> dict[str, Scores]:
    """The scores of some rows, whose log probabilities are added to `effects` on the way."""
    recorded = {name: _recorded(name, row, effects, side.windows) for name, row in rows.items()}
    return side.scores(recorded, sites.progress)


def _ends(key: str, found: tuple[float, float, float]) -> dict[str, float]:
    return dict(zip((key, f"{key}_low", f"{key}_high"), found, strict=True))


def _each(vectors: Vectors) -> Iterator[tuple[str, Float[Tensor, " d"]]]:
    """Every single vector with a name of its own."""
    for name, found in vectors.items():
        for number, one in enumerate(found if found.ndim == 2 else found[None]):
            yield (name if found.ndim == 1 else f"{name}.{number}"), one


def _steered(late, stream: Callable[[slice], Tensor], vector: Float[Tensor, " d"] | None) -> Logits:
    """The logits of a late half on its own stream, to which `vector` is added at every token but BOS."""

    def logits(batch: Batch) -> Tensor:
        own = stream(batch.rows).to(late.net.device)
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
