"""The token ids of one text file that a user names."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from stitch.errors import StitchError, UsageError


def file_ids(file: Path, tokenizer: Any, parameter: str) -> Int[Tensor, " tokens"]:
    """Token ids of a text file, without BOS. Raises UsageError if it is missing, StitchError if it is not UTF-8 text."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"{parameter} must be a text file; there is no file {file}: check the path.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise StitchError(f"{parameter} must be readable UTF-8; {file}: {error}: save it as a text file.") from error
    return torch.tensor(tokenizer.encode(text, add_special_tokens=False, verbose=False), dtype=torch.long)
