"""What every model folder must hold: config.json, intact safetensors weights, and a tokenizer."""

import json
from pathlib import Path
from typing import Any

from stitch.errors import StitchError, UsageError
from stitch.files.headers import verify_weights

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json"),
    *("vocab.json", "vocab.txt", "spiece.model"),
)


def check_model_folder(folder: Path, name: str) -> None:
    """Checks `folder` by reading config.json and the headers of the weights; `name` is used in messages.

    Raises: UsageError when a file is missing or the weights are pickled; StitchError when a file is damaged.
    """
    read_config(folder, name)
    verify_weights(folder)
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        raise UsageError(
            f"a model folder must hold its tokenizer; {name} has none: save it there with save_pretrained."
        )


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """config.json of the model in `folder`. Raises: UsageError where there is none; StitchError where it cannot be read."""
    try:
        return dict(json.loads((folder / "config.json").read_bytes()))
    except FileNotFoundError:
        raise UsageError(
            f"a model folder must hold config.json; {name} has none: give the folder of a model."
        ) from None
    except (ValueError, TypeError, OSError) as error:
        raise StitchError(
            f"config.json of {name} cannot be read ({type(error).__name__}): download the model again."
        ) from None
