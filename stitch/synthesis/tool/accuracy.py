"""How often states are right: over all tokens, by how many tokens were read, and by the state itself."""

from collections.abc import Sequence
from math import isfinite

import torch
from jaxtyping import Bool, Int, Int64
from torch import Tensor

from stitch.evaluation.bins import by_powers_of_two
from stitch.evaluation.intervals import ratio_interval


def accuracy(
    name: str,
    predicted: Int64[Tensor, " tokens"],
    truth: Int64[Tensor, "windows context"],
    document: Int[Tensor, "windows context"],
    states: Sequence[str],
) -> dict:
    """A row of tool.json: the share of right states with a 95 % interval over documents.

    `by_tokens_read` and `by_state` have the same for a part of the tokens; parts without tokens are left out. The ends of an
    interval are None where the tokens are those of one document.
    """
    right, owner = predicted == truth.flatten(), document.unique(return_inverse=True)[1].flatten()
    bins, names = by_powers_of_two(truth.shape[1])
    read = _parts(right, owner, bins.expand_as(truth).flatten(), names)
    by_state = _parts(right, owner, truth.flatten(), states)
    return {
        "name": name,
        **_share(right, owner),
        "mean_over_states": sum(part["right"] for part in by_state) / len(by_state),
        "by_tokens_read": read,
        "by_state": by_state,
    }


def _parts(
    right: Bool[Tensor, " tokens"],
    owner: Int64[Tensor, " tokens"],
    part: Int64[Tensor, " tokens"],
    names: Sequence[str],
) -> list[dict]:
    return [
        {"part": names[number], "tokens": int(there.sum()), **_share(right[there], owner[there])}
        for number in part.unique().tolist()
        for there in [part == number]
    ]


def _share(right: Bool[Tensor, " tokens"], owner: Int64[Tensor, " tokens"]) -> dict:
    low, high = ratio_interval(torch.bincount(owner, right.double()), torch.bincount(owner).double())
    ends = {"low": low, "high": high} if isfinite(low) else {"low": None, "high": None}
    return {"right": float(right.double().mean()), **ends}
