"""Probabilities of tokens as probabilities of the byte that comes next, the same for every tokenizer."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stitch.text.vocabulary import Vocabulary

KINDS = 257  # the bytes, and what begins with none: special tokens, and ids without a token


def first_bytes(vocabulary: Vocabulary, size: int) -> Int[Tensor, " size"]:
    """The byte that each of the first `size` ids begins with, or 256."""
    found = [piece[0] if piece else KINDS - 1 for piece in vocabulary.pieces[:size]]
    return torch.tensor(found + [KINDS - 1] * (size - len(found)))


def by_first_byte(
    probabilities: Float[Tensor, "tokens vocabulary"], first: Int[Tensor, " vocabulary"]
) -> Float[Tensor, "tokens kinds"]:
    """Sums over the ids that begin with each byte."""
    found = torch.zeros(len(probabilities), KINDS, device=probabilities.device, dtype=probabilities.dtype)
    return found.index_add_(1, first.to(probabilities.device), probabilities)
