"""Texts with labelled spans: `{"text": …, "labels": [[start, end, class], …]}`, one per line, spans in characters."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from stitch.errors import UsageError
from stitch.text.tokenizers import bos_of

UNLABELLED = -1


@dataclass(frozen=True)
class LabelledText:
    """Token ids of one text, BOS first, and the class of each token, or UNLABELLED."""

    ids: Int64[Tensor, " tokens"]
    classes: Int64[Tensor, " tokens"]


def read_labelled(file: Path, tokenizer: Any, context: int) -> list[LabelledText]:
    """The texts of a .jsonl file, cut at `context` tokens. A token has the class of the span that its last character is in.

    Raises: UsageError for a file that cannot be read, or whose lines are not as above, and where no token has a label.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"labels must be a .jsonl file in UTF-8; {file}: {error}.") from None
    found = [_labelled(line, number, file, tokenizer, context) for number, line in enumerate(lines, 1) if line.strip()]
    if not any((text.classes != UNLABELLED).any() for text in found):
        raise UsageError(
            f"labels must cover some tokens; {file} labels none of the first {context} tokens of any text."
        )
    return found


def _labelled(line: str, number: int, file: Path, tokenizer: Any, context: int) -> LabelledText:
    try:
        entry = json.loads(line)
        text = entry["text"]
        spans = [(int(start), int(end), int(which)) for start, end, which in entry["labels"]]
        if not isinstance(text, str) or any(which < 0 for _, _, which in spans):
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise UsageError(
            f'line {number} of {file} must be {{"text": …, "labels": [[start, end, class], …]}} with classes from 0; '
            f"got {line[:60]!r}."
        ) from None
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    classes = torch.full((len(text) + 1,), UNLABELLED)
    for start, end, which in spans:
        classes[start:end] = which
    last = [max(start, end - 1) for start, end in encoded["offset_mapping"]][: context - 1]
    ids = torch.tensor([bos_of(tokenizer), *encoded["input_ids"][: context - 1]])
    of_tokens = classes[torch.tensor(last, dtype=torch.long)] if last else torch.zeros(0, dtype=torch.long)
    return LabelledText(ids, torch.cat([torch.tensor([UNLABELLED]), of_tokens]))
