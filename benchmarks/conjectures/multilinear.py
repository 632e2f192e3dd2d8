"""Conjecture: features that are products, of the stream with itself or with the token, hold what linear maps miss.

    python benchmarks/conjectures/multilinear.py

A's stream is translated to B's by ridge regression on itself and on 6 × its width further columns, in both directions of the
embedded pair. The columns: ReLU features, products of two and of three random projections of the whitened stream, the stream
multiplied by six classes of tokens (k-means of B's embeddings). Baseline: the stream alone. Nulls: products of a projection
of the stream with one of another token's stream, and random classes of tokens. Three draws each; rows are means over draws.

Rule, set before the run: holds for a direction where products of two beat ReLU features and products with classes beat random
classes, both with an interval clear of 0; refuted where neither does; partly otherwise.
"""

import argparse
from collections.abc import Callable, Iterator

import _shared
import torch
from torch import Tensor

from stitch.activations.observe import residuals
from stitch.composite.compose import late_half, late_logits
from stitch.evaluation.scores import Batch, Logits, Scores, evaluate, mean_of, whole_model
from stitch.models.model import Model
from stitch.regression.moments import accumulate
from stitch.regression.ridge import Ridge, ridge
from stitch.text.windows import Windows, read_for, split_windows

DIRECTIONS = {
    "demo:gpt2 → demo:llama": ("demo:gpt2", 3, "demo:llama", 4),
    "demo:llama → demo:gpt2": ("demo:llama", 4, "demo:gpt2", 3),
}
CLASSES = 6
Columns = Callable[[Tensor, Tensor], Tensor]  # of streams [windows, t, d] and ids [windows, t]


def whitening(x: Tensor) -> tuple[Tensor, Tensor]:
    mean = x.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((x - mean).double().T))
    return mean, (vectors / values.clamp_min(1e-6 * values.max()).sqrt()).float()


def kmeans(rows: Tensor, generator: torch.Generator) -> Tensor:
    """The class of every row, by twenty rounds of Lloyd's algorithm."""
    centres = rows[torch.randperm(len(rows), generator=generator)[:CLASSES]]
    found = torch.zeros(len(rows), dtype=torch.long)
    for _ in range(20):
        found = torch.cdist(rows, centres).argmin(1)
        centres = torch.stack(
            [rows[found == one].mean(0) if (found == one).any() else centres[one] for one in range(CLASSES)]
        )
    return found


def lifts(x: Tensor, b: Model, seed: int) -> dict[str, Columns]:
    """The further columns by name, drawn from `seed`; `x` is a sample of streams [tokens, d]."""
    generator = torch.Generator().manual_seed(seed)
    mean, white = whitening(x)
    count = CLASSES * x.shape[1]
    scale = x.shape[1] ** -0.5  # so that projections have unit variance
    u, v, w = (scale * white @ torch.randn(x.shape[1], count, generator=generator) for _ in range(3))
    bias = torch.randn(count, generator=generator)
    classes = kmeans(b.embedding.weight.detach().float(), generator)
    at_random = torch.randint(CLASSES, classes.shape, generator=generator)

    def by_class(of: Tensor) -> Columns:
        def columns(stream: Tensor, ids: Tensor) -> Tensor:
            chosen = torch.nn.functional.one_hot(of[ids], CLASSES).to(stream)
            return ((stream - mean)[..., None, :] * chosen[..., None]).flatten(-2)

        return columns

    return {
        "relu": lambda s, _: torch.relu((s - mean) @ u + bias),
        "bilinear": lambda s, _: ((s - mean) @ u) * ((s - mean) @ v),
        "cubic": lambda s, _: ((s - mean) @ u) * ((s - mean) @ v) * ((s - mean) @ w),
        "classes": by_class(classes),
        "null:other token": lambda s, _: ((s - mean) @ u) * ((s.roll(17, -2) - mean) @ v),
        "null:random classes": by_class(at_random),
    }


def fitted(streams: dict[str, tuple[Tensor, Tensor, Tensor]], columns: Columns | None) -> Ridge:
    """Ridge of B's stream on A's and the columns; λ by the sweep split. BOS is left out."""

    def chunks(split: str) -> Iterator[dict[str, Tensor]]:
        x, y, ids = streams[split]
        for start in range(0, len(x), 16):
            part = slice(start, start + 16)
            row = {"x": x[part, 1:].flatten(0, 1), "target": y[part, 1:].flatten(0, 1)}
            if columns is not None:
                row["lift"] = columns(x[part], ids[part])[:, 1:].flatten(0, 1)
            yield row

    names = ("x",) if columns is None else ("x", "lift")
    pairs = [(one, other) for place, one in enumerate(names) for other in (*names[place:], "target")]
    fit, held_out = accumulate(chunks("fit"), pairs), accumulate(chunks("sweep"), pairs)
    return ridge(fit, held_out, names, apart=None if columns is None else "lift")


def measure(name: str, given: argparse.Namespace) -> None:
    a_name, site_a, b_name, site_b = DIRECTIONS[name]
    a, b = (_shared.subject(one, context=256, windows=1).model for one in (a_name, b_name))
    sizes = {"fit": 8_192 if given.small else 32_768, "sweep": 8_192, "report": 28_672}
    windows = split_windows(read_for("docs", sizes, a.tokenizer, 256), sizes, a.tokenizer, 256)
    streams = {split: _streams(a, site_a, b, site_b, found) for split, found in windows.items()}
    x = streams["fit"][0][:, 1:].flatten(0, 1)
    rows: dict[str, Logits] = {"b": whole_model(b.net)}
    late, late_x, first = late_half(b, site_b), streams["report"][0], streams["fit"][1][0, 0]

    def row(columns: Columns | None) -> Logits:
        found = fitted(streams, columns)

        def logits(batch: Batch) -> Tensor:
            stream = late_x[batch.rows]
            y = stream.double() @ found.weights["x"] + found.bias
            if columns is not None:
                y = y + columns(stream, batch.ids).double() @ found.weights["lift"]
            y = y.float()
            y[:, 0] = first
            return late_logits(late, y, ids=batch.ids)

        return logits

    rows["linear"] = row(None)
    for seed in _shared.SEEDS:
        rows |= {f"{kind} {seed}": row(columns) for kind, columns in lifts(x, b, seed).items()}
    scores = evaluate(rows, windows["report"], vocabulary=b.vocabulary)
    kinds = list(lifts(x[:1000], b, 0))
    of: dict[str, Scores] = {kind: mean_of([scores[f"{kind} {seed}"] for seed in _shared.SEEDS]) for kind in kinds}
    product = of["bilinear"].difference(of["relu"])
    classes = of["classes"].difference(of["null:random classes"])
    wins = [one["ce_high"] < 0 for one in (product, classes)]
    _shared.tell(
        "multilinear", name, "holds" if all(wins) else "partly" if any(wins) else "refuted", bilinear_minus_relu=product,
        classes_minus_random=classes,
        rows=[
            {"columns": kind, "range": _range(scores, kind), **found.difference(scores["linear"])}
            for kind, found in of.items()
        ],
        linear=scores["linear"].ce, b=scores["b"].ce, tokens=windows["fit"].tokens, **_shared.documents(scores["b"]),
    )  # fmt: skip


def _range(scores: dict[str, Scores], kind: str) -> list[float]:
    """The lowest and highest cross-entropy of the draws."""
    found = [scores[f"{kind} {seed}"].ce for seed in _shared.SEEDS]
    return [min(found), max(found)]


@torch.no_grad()
def _streams(a: Model, site_a: int, b: Model, site_b: int, windows: Windows) -> tuple[Tensor, Tensor, Tensor]:
    parts = []
    for model, site in ((a, site_a), (b, site_b)):
        chunks = [residuals(model, ids.long(), [site])[site] for ids in windows.ids.split(16)]
        parts.append(torch.cat(chunks).float())
    return parts[0], parts[1], windows.ids.long()


if __name__ == "__main__":
    _shared.run(__doc__, list(DIRECTIONS), measure)
