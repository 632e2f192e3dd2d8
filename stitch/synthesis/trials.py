"""Prompts with the answers of a reference interpreter, and the margin of these answers in a model's logits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

BATCH = 65_536  # tokens per forward pass


@dataclass(frozen=True)
class Trial:
    """`answers[i, j]` must follow `ids[i, j]`; −1 where nothing is asked. Shorter prompts are padded on the right."""

    name: str
    ids: Int64[Tensor, "rows length"]
    answers: Int64[Tensor, "rows length"]

    @property
    def asked(self) -> int:
        return int((self.answers >= 0).sum())


@dataclass(frozen=True)
class Outcome:
    """`margin` is the smallest difference between an answer's logit and the highest other logit, negative for a wrong answer."""

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
    """The answers of a model, read in one forward pass per prompt, which contains the correct answers.

    As long as no answer is wrong, the result equals that of greedy decoding.
    """
    rows = max(BATCH // trial.ids.shape[1], 1)
    asked = wrong = 0
    margin = torch.inf
    for ids, answers in zip(trial.ids.split(rows), trial.answers.split(rows), strict=True):
        where = answers >= 0
        logits = net(ids.to(net.device), use_cache=False).logits[where.to(net.device)].float()
        right = answers[where].to(net.device)[:, None]
        margins = logits.gather(1, right)[:, 0] - logits.scatter(1, right, -torch.inf).max(1).values
        asked, wrong = asked + len(margins), wrong + int((margins <= 0).sum())
        margin = min(margin, float(margins.min())) if len(margins) else margin
        if progress:
            progress(len(ids))
    return Outcome(asked, wrong, float(margin))
