"""The two-layer induction circuit: one head copies the previous token, the next finds where the current token was copied.

Tokens have binary codes of ±1, so heads distinguish any vocabulary in as many dimensions as its size has bits. The answer is the
token that followed the current token before; if that token occurred several times, each following token has a share. The first
token of a prompt counts as its own predecessor, so it should not occur again. Source: Elhage et al. 2021.
"""

import torch
from torch import Tensor

from stitch.synthesis.blueprint import Block, Blueprint, LookUp, Select, allot, back, balanced_signs, bits_for, sharp
from stitch.synthesis.trials import Trial

FEWEST_TOKENS = 5  # of context: two that repeat, and the first token


def induction(tokens: tuple[str, ...], length: int) -> Blueprint:
    """The blueprint for prompts of `length` tokens; a token that occurs for the first time has no answer."""
    bits = bits_for(len(tokens))
    at = allot(own=2 * bits, before=2 * bits, following=2 * bits)
    width = 6 * bits
    unit = torch.eye(width, dtype=torch.float64)
    codes = balanced_signs(torch.arange(len(tokens)), bits)
    none = torch.zeros(bits, dtype=torch.float64)
    head = LookUp(
        query=unit[:, at["own"][:bits]], query_bias=none, key=sharp(2.0, length) * unit[:, at["before"][:bits]],
        source=at["own"], into=at["following"],
    )  # fmt: skip
    ids, asked = repeated(len(tokens), min(length, 64), 4, seed=0)
    return Blueprint(
        tokens=tokens,
        embedding=codes @ unit[at["own"]],
        blocks=(Block((Select(back(1, length), at["own"], at["before"]),)), Block((head,))),
        unembedding=unit[:, at["following"]] @ codes.T / (2 * bits),
        length=length,
        specimens=ids,
        asked=asked,
        crosstalk=1 - 2 / bits if bits > 1 else -1.0,  # a token whose code differs in one bit
    )


def repeated(count: int, length: int, rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Token 0, a sequence of different tokens, and the same sequence again; asked from the first token of the second one on."""
    half = min((length - 1) // 2, count - 1)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.stack([torch.randperm(count - 1, generator=generator)[:half] + 1 for _ in range(rows)])
    ids = torch.cat([torch.zeros_like(drawn[:, :1]), drawn, drawn], 1)
    asked = torch.zeros_like(ids, dtype=torch.bool)
    asked[:, 1 + half : -1] = True
    return ids, asked


def trials(count: int, length: int, tokens: int, seed: int) -> Trial:
    """Repeated sequences (`repeated`) from a vocabulary of `count` tokens, about `tokens` tokens in total."""
    ids, asked = repeated(count, length, max(tokens // length, 1), seed)
    answers = torch.where(asked, ids.roll(-1, 1), -1)
    return Trial(f"{(ids.shape[1] - 1) // 2} different tokens, repeated", ids, answers)
