"""The token ids of one text file that a user names."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from stitch.errors import StitchError, UsageError


def file_ids(file: Path, tokenizer: Any, parameter: str) -> Int[Tensor, " tokens"]:
    """Token ids of a text file, without BOS. Raises: as `text_of`."""
    return torch.tensor(
        tokenizer.encode(text_of(file, parameter), add_special_tokens=False, verbose=False), dtype=torch.long
    )


def text_of(file: Path, parameter: str) -> str:
    """What a text file holds. Raises: UsageError if it is missing; StitchError if it is not UTF-8 text."""
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"{parameter} must be a text file; there is no file {file}: check the path.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise StitchError(f"{parameter} must be readable UTF-8; {file}: {error}: save it as a text file.") from error
