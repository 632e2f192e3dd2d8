"""Prompts with the answers that a reference interpreter gives, and how far a model's logits put them ahead."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

BATCH = 65_536  # tokens run at once


@dataclass(frozen=True)
class Trial:
    """`answers` are the tokens that must follow each; −1 where nothing is asked. Shorter prompts are filled up on the right."""

    name: str
    ids: Int64[Tensor, "rows length"]
    answers: Int64[Tensor, "rows length"]

    @property
    def asked(self) -> int:
        return int((self.answers >= 0).sum())


@dataclass(frozen=True)
class Outcome:
    """`margin` is the smallest lead of an answer's logit over all others: negative where one is wrong."""

    asked: int
    wrong: int
    margin: float


def padded(name: str, ids: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> Trial:
    length = max(map(len, ids))
    return Trial(
        name,
        torch.tensor([[*row, *[0] * (length - len(row))] for row in ids]),
        torch.tensor([[*row, *[-1] * (length - len(row))] for row in answers]),
    )


@torch.inference_mode()
def outcome(net: Any, trial: Trial, progress: Callable[[int], None] | None = None) -> Outcome:
    """Every prompt in one pass each: as answers are read from prompts that hold the right ones, this is greedy decoding, too, as
    long as none is wrong."""
    rows = max(BATCH // trial.ids.shape[1], 1)
    asked = wrong = 0
    margin = torch.inf
    for ids, answers in zip(trial.ids.split(rows), trial.answers.split(rows), strict=True):
        where = answers >= 0
        logits = net(ids.to(net.device), use_cache=False).logits[where.to(net.device)].float()
        right = answers[where].to(net.device)[:, None]
        lead = logits.gather(1, right)[:, 0] - logits.scatter(1, right, -torch.inf).max(1).values
        asked, wrong = asked + len(lead), wrong + int((lead <= 0).sum())
        margin = min(margin, float(lead.min())) if len(lead) else margin
        if progress:
            progress(len(ids))
    return Outcome(asked, wrong, float(margin))
