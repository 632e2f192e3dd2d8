"""Prompts of a behaviour that the user has written down, one per line."""

from pathlib import Path
from typing import Any

import torch

from stitch.circuits.behaviours.prompts import Prompts
from stitch.circuits.behaviours.sampler import single
from stitch.errors import UsageError
from stitch.files.schema import Schema, checked_lines
from stitch.files.specification import faulty, shown
from stitch.text.tokenizers import bos_of


class PromptLine(Schema):
    clean: str
    corrupt: str
    answer: str


def from_file(path: Path, tokenizer: Any) -> Prompts:
    """Prompts from lines {"clean": …, "corrupt": …, "answer": …}. The answer is one token; clean and corrupt have equally many.

    Raises: UsageError for all other lines, with their numbers, and for an empty file.
    """
    rows, faults = [], []
    for number, line in checked_lines(PromptLine, path, "the file of prompts"):
        clean, corrupt = (tokenizer.encode(text, add_special_tokens=False) for text in (line.clean, line.corrupt))
        answer = single(tokenizer, line.answer)
        if not clean or len(clean) != len(corrupt):
            faults.append(
                f"line {number}: clean and corrupt must have equally many tokens, got {len(clean)} and {len(corrupt)}"
            )
        if answer is None:
            faults.append(
                f"line {number}: the answer must be one token, got {shown(line.answer)}: mind the space before it"
            )
        rows.append((clean, corrupt, answer))
    if faults:
        raise faulty(str(path), faults)
    if not rows:
        raise UsageError(f"{path} must have at least one prompt; it is empty: write one line per prompt.")
    length, bos = 1 + max(len(clean) for clean, _, _ in rows), bos_of(tokenizer)
    # Padding comes after the token that is asked for, so it changes nothing there.
    clean, corrupt = (
        torch.tensor([[bos, *row[side], *[bos] * (length - 1 - len(row[side]))] for row in rows]) for side in (0, 1)
    )
    asked, answers = torch.zeros_like(clean, dtype=torch.bool), torch.zeros_like(clean)
    for number, (ids, _, answer) in enumerate(rows):
        asked[number, len(ids)], answers[number, len(ids)] = True, answer
    return Prompts(clean, corrupt, asked, answers)
