"""The two-layer induction circuit, written down: one head looks one token back, the next looks for what came before.

Tokens are binary codes, ±1, so that a head tells any vocabulary apart in as many dimensions as its size has bits. Says what
followed the last time; where a token came more than once, what followed each time has a share. The first token of a prompt looks
like its own predecessor, so that it should be one that does not come again. Source: Elhage et al. 2021.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from stitch.synthesis.blueprint import Block, Blueprint, LookUp, Select, allot, back, sharp, signs
from stitch.synthesis.trials import Trial


def induction(tokens: tuple[str, ...], length: int) -> Blueprint:
    """For prompts of `length` tokens of any vocabulary; a token that is new gets no answer."""
    bits = max((len(tokens) - 1).bit_length(), 1)
    at = allot(own=2 * bits, before=2 * bits, following=2 * bits)
    width = 6 * bits
    unit = torch.eye(width, dtype=torch.float64)
    codes = token_codes(len(tokens))
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


def token_codes(count: int) -> Float[Tensor, "tokens codes"]:
    """Bits of every token's number as ±1, then all with the other sign."""
    bits = max((count - 1).bit_length(), 1)
    code = signs(torch.arange(count), bits)
    return torch.cat([code, -code], 1)


def repeated(count: int, length: int, rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Token 0, different tokens, and then the same again; asked from the second time on that the first of them comes."""
    half = min((length - 1) // 2, count - 1)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.stack([torch.randperm(count - 1, generator=generator)[:half] + 1 for _ in range(rows)])
    ids = torch.cat([torch.zeros_like(drawn[:, :1]), drawn, drawn], 1)
    asked = torch.zeros_like(ids, dtype=torch.bool)
    asked[:, 1 + half : -1] = True
    return ids, asked


def trials(count: int, length: int, tokens: int, seed: int) -> Trial:
    ids, asked = repeated(count, length, max(tokens // length, 1), seed)
    answers = torch.where(asked, ids.roll(-1, 1), -1)
    return Trial(f"{(ids.shape[1] - 1) // 2} different tokens, repeated", ids, answers)
