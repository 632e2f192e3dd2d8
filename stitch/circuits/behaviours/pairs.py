"""Single attention heads in isolation: the previous token, and the same token again, among random pairs."""

import torch

from stitch.circuits.behaviours.prompts import Prompts, following
from stitch.circuits.behaviours.sampler import TokenSampler

PAIRS = 12  # pairs of tokens in a prompt


def previous_token(sampler: TokenSampler) -> Prompts:
    """Two tokens alternate, so the next token is the previous one. Corrupt: all tokens are different."""
    drawn = sampler.distinct(2 + 2 * PAIRS)
    clean = sampler.starting_with_bos(drawn[:, :2].repeat(1, PAIRS))
    corrupt = sampler.starting_with_bos(drawn[:, 2:])
    asked = torch.zeros_like(clean, dtype=torch.bool)
    asked[:, 4:-1] = True
    return following(clean, corrupt, asked)


def duplicate_token(sampler: TokenSampler) -> Prompts:
    """Every token comes twice in a row; the second one is asked for. Corrupt: the second one is another token."""
    drawn = sampler.distinct(2 * PAIRS)
    clean = sampler.starting_with_bos(drawn[:, :PAIRS].repeat_interleave(2, 1))
    corrupt = sampler.starting_with_bos(torch.stack([drawn[:, :PAIRS], drawn[:, PAIRS:]], 2).flatten(1))
    asked = torch.zeros_like(clean, dtype=torch.bool)
    asked[:, 5::2] = True
    return following(clean, corrupt, asked)
