"""Copying of natural text: a passage of held-out text stands twice in a prompt."""

import torch

from stitch.circuits.behaviours.prompts import Prompts, following
from stitch.circuits.behaviours.sampler import TokenSampler, held_out, one_per_document

PASSAGE, BETWEEN = 60, 20  # tokens of a repeated passage, and those between its two occurrences


def natural_copying(sampler: TokenSampler) -> Prompts:
    """A passage of held-out text stands twice, with other text between. At its second occurrence all tokens but the first are
    asked for.

    Corrupt: the first occurrence is a passage of another document, so its right answers are those of a first reading. A document
    gives one passage, from its start. Every second passage, from the first on, is of the text's sweep split, the others are of
    its report split.
    """
    length = PASSAGE + BETWEEN

    def start(ids: list[int]) -> list[int] | None:
        return ids[:length] if len(ids) >= length else None

    passages = torch.zeros(2, sampler.count, length, dtype=torch.long)
    for rows, count, documents in held_out(sampler, 4 * length):
        starts = one_per_document(sampler, documents, count + 1, start, f"of {length} tokens")
        found = torch.tensor(starts, dtype=torch.long).view(count + 1, length)
        passages[:, rows] = torch.stack([found[:-1], found[1:]])
    (passage, _), (other, between) = (ids.split([PASSAGE, BETWEEN], 1) for ids in passages)
    clean, corrupt = (sampler.starting_with_bos(first, between, passage) for first in (passage, other))
    asked = torch.zeros_like(clean, dtype=torch.bool)
    asked[:, length + 1 : -1] = True
    return following(clean, corrupt, asked)
