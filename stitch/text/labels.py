"""Texts with labelled spans: `{"text": …, "labels": [[start, end, class], …]}`, one per line, spans in characters."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from jaxtyping import Int64
from pydantic import Field, Strict
from torch import Tensor

from stitch.errors import UsageError
from stitch.files.schema import Schema, checked_lines
from stitch.files.specification import faulty, shown
from stitch.text.tokenizers import bos_of

UNLABELLED = -1
MOST_CLASSES = 10_000  # a probe has a direction for each


@dataclass(frozen=True)
class LabelledText:
    """Token ids of one text, BOS first, and the class of each token, or UNLABELLED."""

    ids: Int64[Tensor, " tokens"]
    classes: Int64[Tensor, " tokens"]


Character = Annotated[int, Field(ge=0)]
Class = Annotated[int, Field(ge=0, lt=MOST_CLASSES)]


class LabelledLine(Schema):
    text: str
    labels: list[Annotated[tuple[Character, Character, Class], Strict(False)]]  # JSON has lists, no tuples


def read_labelled(file: Path, tokenizer: Any, context: int) -> list[LabelledText]:
    """The texts of a .jsonl file, cut at `context` tokens. A token has the class of the span that its last character is in.

    Raises: UsageError for a file that cannot be read, or whose lines are not as above, and where no token has a label.
    """
    found, faults = [], []
    for number, entry in checked_lines(LabelledLine, file, "the file of labels"):
        faults += [
            f"line {number}: labels[{place}] must be a span within the {len(entry.text)} characters, got {shown(span)}"
            for place, span in enumerate(entry.labels)
            if not span[0] < span[1] <= len(entry.text)
        ]
        found.append(entry)
    if faults:
        raise faulty(str(file), faults)
    texts = [_labelled(entry, tokenizer, context) for entry in found]
    if not any((text.classes != UNLABELLED).any() for text in texts):
        raise UsageError(
            f"labels must cover some tokens; {file} labels none of the first {context} tokens of any text."
        )
    return texts


def _labelled(entry: LabelledLine, tokenizer: Any, context: int) -> LabelledText:
    text, spans = entry.text, entry.labels
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    classes = torch.full((len(text) + 1,), UNLABELLED)
    for start, end, which in spans:
        classes[start:end] = which
    last = [max(start, end - 1) for start, end in encoded["offset_mapping"]][: context - 1]
    ids = torch.tensor([bos_of(tokenizer), *encoded["input_ids"][: context - 1]])
    of_tokens = classes[torch.tensor(last, dtype=torch.long)] if last else torch.zeros(0, dtype=torch.long)
    return LabelledText(ids, torch.cat([torch.tensor([UNLABELLED]), of_tokens]))
