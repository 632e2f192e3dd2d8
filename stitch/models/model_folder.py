"""What every model folder must hold: config.json, intact safetensors weights, and a tokenizer."""

from pathlib import Path
from typing import Any

from sae.json_file import read_object
from stitch.errors import StitchError, UsageError
from stitch.files.headers import verify_weights
from stitch.models.described import require_described, require_stored

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json"),
    *("vocab.json", "vocab.txt", "spiece.model"),
)


def check_model_folder(folder: Path, name: str) -> None:
    """Checks `folder` by reading config.json and the headers of the weights; `name` is used in messages.

    Raises: UsageError when a file is missing or the weights are pickled; StitchError when a file is damaged, or config.json
    describes no model or another one.
    """
    config = read_config(folder, name)
    require_described(config, name)
    require_stored(config, verify_weights(folder), name)
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        raise UsageError(
            f"a model folder must hold its tokenizer; {name} has none: save it there with save_pretrained."
        )


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """config.json of the model in `folder`. Raises: UsageError where there is none; StitchError where it cannot be read."""
    try:
        return read_object(folder / "config.json")
    except FileNotFoundError:
        raise UsageError(
            f"a model folder must hold config.json; {name} has none: give the folder of a model."
        ) from None
    except ValueError as error:
        raise StitchError(f"config.json of {name} must be a JSON object; {error}: download the model again.") from None
