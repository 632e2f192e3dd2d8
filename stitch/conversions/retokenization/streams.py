"""Residual streams on passages, and a model's embedding exchanged for another."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stitch.activations.observe import residuals
from stitch.conversions.retokenization.passages import Passage
from stitch.models.model import Model
from stitch.progress import Progress, counted


@contextmanager
def embedding(model: Model, rows: Float[Tensor, "vocabulary d"]) -> Iterator[None]:
    """Inside, the model reads ids of another vocabulary through these rows. Its head stays."""
    before = model.embedding.weight
    model.embedding.weight = nn.Parameter(rows.to(before), requires_grad=False)
    try:
        yield
    finally:
        model.embedding.weight = before


def read_by(head: nn.Module, run: Callable[[], object]) -> Float[Tensor, "batch positions d"]:
    """What `head` reads in `run`. It computes logits for the last position alone, as those of all may not fit into memory."""
    seen: list[Tensor] = []

    def last_alone(_: nn.Module, args: tuple) -> tuple:
        seen.append(args[0])
        return (args[0][:, -1:], *args[1:])

    hook = head.register_forward_pre_hook(last_alone)
    try:
        run()
    finally:
        hook.remove()
    return seen[-1]


@torch.no_grad()
def final(model: Model, ids: Int[Tensor, " tokens"], bos: int) -> Float[Tensor, "positions d"]:
    """What the head reads, after the final norm, behind BOS and each token: position t predicts token t."""
    sequence = torch.cat([torch.tensor([bos]), ids]).to(model.device)
    return read_by(model.head, lambda: model.net(input_ids=sequence[None], use_cache=False))[0].float()


def final_of(
    model: Model, passages: Sequence[Passage], bos: int, stage: str, progress: Progress | None
) -> list[Float[Tensor, "_ d"]]:
    """`final` of the new tokens of each passage."""
    return [final(model, passage.new.ids, bos) for passage in counted(passages, f"{stage} (passages)", progress)]


@dataclass(frozen=True)
class OnText:
    """The model on passages, in its own tokens, one passage after another.

    `before[t]` is the id that was read at a position, BOS included, `final[t]` what the head reads there and `first[t]` the
    stream after the first block. Passage p has positions `starts[p]` to `starts[p + 1]`; position starts[p] is BOS.
    """

    before: Int[Tensor, " positions"]
    final: Float[Tensor, "positions d"]
    first: Float[Tensor, "positions d"]
    starts: list[int]

    @classmethod
    def of(cls, model: Model, passages: Sequence[Passage], bos: int, progress: Progress | None = None) -> "OnText":
        before, last, first, starts = [], [], [], [0]
        for passage in counted(passages, "the model in its own tokens (passages)", progress):
            ids = torch.cat([torch.tensor([bos]), passage.own.ids])
            before.append(ids)
            last.append(final(model, passage.own.ids, bos))
            first.append(residuals(model, ids[None].to(model.device), [1])[1][0].float())
            starts.append(starts[-1] + len(ids))
        return cls(torch.cat(before), torch.cat(last), torch.cat(first), starts)
