"""Associative recall over a distance: prompts with the same random sequence at the start and at the end of the context."""

import torch
from torch import nn

from stitch.circuits.behaviours.prompts import Prompts
from stitch.circuits.score import answered
from stitch.text.tokenizers import bos_of

DISTINCT = 16  # tokens of the sequence
TOKENS, LEAST_PROMPTS = 8_192, 16  # tokens of all prompts together, but at least so many prompts


def recall_prompts(tokenizer, context: int, *, count: int | None = None, seed: int = 0) -> Prompts:
    """Prompts of BOS, DISTINCT tokens (fewer in a short context), other random tokens, and the first tokens again.

    The answers are the repeated tokens from the second on. In corrupt prompts the first sequence is a different one. No token
    occurs otherwise twice, so a prompt is at most as long as the vocabulary.
    """
    special = set(tokenizer.all_special_ids)
    ordinary = torch.tensor([id for id in sorted(tokenizer.get_vocab().values()) if id not in special])
    length = min(context - 1, len(ordinary))
    count = count or max(LEAST_PROMPTS, TOKENS // (length + 1))
    generator = torch.Generator().manual_seed(seed)
    drawn = ordinary[torch.stack([torch.randperm(len(ordinary), generator=generator)[:length] for _ in range(count)])]
    distinct = min(DISTINCT, length // 4)
    # `between` fills the space between the two copies; `other` replaces the first copy in corrupt prompts.
    repeated, other, between = drawn.split([distinct, distinct, length - 2 * distinct], 1)
    bos = torch.full((count, 1), bos_of(tokenizer))
    clean, corrupt = (torch.cat([bos, first, between, repeated], 1) for first in (repeated, other))
    asked = torch.zeros_like(clean, dtype=torch.bool)
    asked[:, -distinct:-1] = True
    return Prompts(clean, corrupt, asked, clean.roll(-1, 1))


def recall(net: nn.Module, asked: Prompts, corrupt: bool = False) -> float:
    """The share of answers that are the model's most likely token."""
    device = next(net.parameters()).device
    ids = asked.corrupt if corrupt else asked.clean
    return answered(lambda ids: net(input_ids=ids.to(device), use_cache=False).logits.cpu(), ids, asked)["right"]
