"""Bits per byte of documents, the one measure that two tokenizers have in common."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from math import log

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stitch.conversions.retokenization.at_once import rows_at_once
from stitch.conversions.retokenization.streams import embedding, final
from stitch.errors import StitchError
from stitch.evaluation.scores import Scores
from stitch.models.model import Model
from stitch.progress import Progress, Steps

Head = Float[Tensor, "_ columns"]  # rows by token id, with a bias as one column more where there is one
# What configs of families call what they do to logits.
SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
FACTORS = ("logit_scale", "lm_head_multiplier")
DIVISORS = ("logits_scaling",)


def with_one(stream: Float[Tensor, "positions d"], columns: int) -> Float[Tensor, "positions columns"]:
    """What a head of so many columns reads: the stream, and 1 where its last column is a bias."""
    if columns == stream.shape[1]:
        return stream
    return torch.cat([stream, torch.ones(len(stream), 1, device=stream.device)], 1)


def logits(
    stream: Float[Tensor, "positions d"], head: Head, cap: float | None
) -> Float[Tensor, "positions vocabulary"]:
    """Of the head, softly capped where the family does that (Gemma 2)."""
    found = with_one(stream, head.shape[1]) @ head.T
    return found if cap is None else cap * torch.tanh(found / cap)


def passes_over(positions: int, vocabulary: int) -> int:
    """In how many parts so many positions are gone through, so that the logits of one part fit."""
    return -(-positions // rows_at_once(vocabulary))


def nats(
    stream: Float[Tensor, "positions d"],
    head: Head,
    targets: Int[Tensor, " positions"],
    cap: float | None,
    tick: Callable[[], None] = lambda: None,
) -> float:
    """−Σ log p(target) over positions. `tick` is called after each of the parts that `passes_over` counts."""
    total, some = 0.0, rows_at_once(len(head))
    for part, wanted in zip(stream.split(some), targets.to(stream.device).split(some), strict=True):
        found = logits(part, head, cap)
        total += float((found.logsumexp(-1) - found.gather(1, wanted[:, None])[:, 0]).double().sum())
        tick()
    return total


def score(
    model: Model,
    rows: Float[Tensor, "vocabulary d"],
    heads: Mapping[str, Head],
    documents: Sequence[tuple[Int[Tensor, " _"], int]],
    bos: int,
    *,
    stage: str = "evaluation",
    progress: Progress | None = None,
) -> dict[str, Scores]:
    """Bits per byte behind one embedding with each of `heads`, on documents of (ids, bytes). Only the predictions of ids count.

    In `Scores` the counts are bytes, and the sums bits. Progress is that of a `stage`.
    Raises: StitchError when logits are not finite.
    """
    cap = softcap(model)
    bits: dict[str, list[float]] = {name: [] for name in heads}
    step = Steps(f"{stage} (documents × heads)", len(documents) * len(heads), progress)
    with embedding(model, rows):
        for ids, _ in documents:
            stream = final(model, ids, bos)[:-1]
            for name, head in heads.items():
                bits[name].append(nats(stream, head, ids, cap) / log(2))
                step()
    sizes = torch.tensor([size for _, size in documents], dtype=torch.float64)
    for name, found in bits.items():
        if not torch.tensor(found).isfinite().all():
            raise StitchError(f"logits must be finite; {name} gives NaN or infinity: try `dtype=fp32`.")
    return {name: Scores(torch.tensor(found, dtype=torch.float64), None, None, sizes) for name, found in bits.items()}


def softcap(model: Model) -> float | None:
    return _first_of(model, SOFTCAPS)


def scale(model: Model) -> float:
    """What the family multiplies the head's output by."""
    return (_first_of(model, FACTORS) or 1.0) / (_first_of(model, DIVISORS) or 1.0)


def _first_of(model: Model, names: tuple[str, ...]) -> float | None:
    """The first of these numbers in the config, among names that its family has: files may hold others, which nothing reads."""
    config = model.config.get_text_config(decoder=True)
    declared = {*inspect.signature(type(config).__init__).parameters}
    declared |= {name for cls in type(config).__mro__ for name in getattr(cls, "__annotations__", {})}
    values = (getattr(config, name, None) for name in names if name in declared)
    return next((value for value in values if isinstance(value, (int, float))), None)


def head_of(model: Model) -> Head:
    """The rows that give the model's logits, in float32: those of its head, with its bias as a last column where it has one,
    times what the family multiplies logits by.
    """
    head = model.head
    rows, bias = head.weight.detach().float(), getattr(head, "bias", None)  # pyright: ignore[reportCallIssue]
    found = rows if bias is None else torch.cat([rows, bias.detach().float()[:, None]], 1)
    return found if scale(model) == 1.0 else found * scale(model)
