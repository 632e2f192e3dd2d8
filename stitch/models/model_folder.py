"""What every model folder must hold: config.json, intact and unquantised safetensors weights, and a tokenizer."""

import json
from pathlib import Path

from stitch.errors import StitchError, UsageError
from stitch.files.headers import verify_weights

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json"),
    *("vocab.json", "vocab.txt", "spiece.model"),
)


def check_model_folder(folder: Path, name: str) -> None:
    """Checks `folder` by reading config.json and the headers of the weights; `name` is used in messages.

    Raises: UsageError when a file is missing or the weights are quantised or pickled; StitchError when a file is damaged.
    """
    try:
        config = dict(json.loads((folder / "config.json").read_bytes()))
    except FileNotFoundError:
        raise UsageError(
            f"a model folder must hold config.json; {name} has none: give the folder of a model."
        ) from None
    except (ValueError, TypeError, OSError) as error:
        raise StitchError(
            f"config.json of {name} cannot be read ({type(error).__name__}): download the model again."
        ) from None
    verify_weights(folder)
    require_unquantised(config, name)
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        raise UsageError(
            f"a model folder must hold its tokenizer; {name} has none: save it there with save_pretrained."
        )


def require_unquantised(config: dict, name: str) -> None:
    """Raises: UsageError when config.json, read as `config`, says that the weights of the model `name` are quantised."""
    if quantised := config.get("quantization_config"):
        method = quantised.get("quant_method", "unknown") if isinstance(quantised, dict) else "unknown"
        raise UsageError(
            f"weights must be plain floats; those of {name} are quantised ({method}): "
            "use the unquantised checkpoint or a GGUF file."
        )
