"""The behaviours by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from stitch.circuits.behaviours.brackets import brackets, natural_brackets
from stitch.circuits.behaviours.copying import natural_copying
from stitch.circuits.behaviours.ngram import natural_ngram, ngram
from stitch.circuits.behaviours.pairs import duplicate_token, previous_token
from stitch.circuits.behaviours.prompt_file import from_file
from stitch.circuits.behaviours.prompts import Prompts
from stitch.circuits.behaviours.repeated import iid_induction, induction
from stitch.circuits.behaviours.sampler import LONGEST, TokenSampler
from stitch.errors import UsageError
from stitch.progress import Progress
from stitch.text.sources import Writes

OF_TEXT: dict[str, Callable[[TokenSampler], Prompts]] = {
    "ngram": ngram,
    "natural-ngram": natural_ngram,
    "natural-copying": natural_copying,
    "natural-brackets": natural_brackets,
}
BEHAVIOURS: dict[str, Callable[[TokenSampler], Prompts]] = {
    "induction": induction,
    "iid-induction": iid_induction,
    "previous-token": previous_token,
    "duplicate-token": duplicate_token,
    "brackets": brackets,
    **OF_TEXT,
}


def make_prompts(
    behaviour: str,
    tokenizer: Any,
    *,
    count: int = 256,
    seed: int = 0,
    longest: int = LONGEST,
    text: str = "docs",
    writer: Writes | None = None,
    progress: Progress | None = None,
) -> Prompts:
    """`count` prompts of the behaviour with that name, or all prompts of a .jsonl file (`from_file`). Prompts whose length is not
    fixed have at most `longest` tokens. `text`, which may be written by `writer`, is what the text of behaviours comes from.

    Raises: UsageError when there is no such behaviour or file, when the context, the vocabulary or the text is too small for it,
    and for a file with other lines.
    """
    if count < 1:
        raise UsageError(f"count must be at least 1; got {count}.")
    if make := BEHAVIOURS.get(behaviour):
        generator = torch.Generator().manual_seed(seed)
        return make(TokenSampler(tokenizer, count, generator, longest, text, writer, progress))
    if Path(behaviour).is_file():
        return from_file(Path(behaviour), tokenizer)
    raise UsageError(f"behaviour must be one of {', '.join(BEHAVIOURS)}, or a .jsonl file; got {behaviour}.")
