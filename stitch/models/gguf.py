"""GGUF files, dequantised once into safetensors folders in the user cache."""

import contextlib
import hashlib
from pathlib import Path
from typing import Any

from stitch.errors import StitchError, UsageError, require_extra
from stitch.files.front_matter import CARD, front_matter
from stitch.models.bars import Drawn, told
from stitch.models.made_once import made_once
from stitch.progress import Progress

# A GGUF file only names its pre-tokenizer, and transformers falls back to GPT-2's pattern for names it does not know. That is
# right for the byte-level BPE vocabularies of the first set (names as in llama.cpp); those of the second split off every digit.
GPT2_SPLIT = {"gpt-2", "gpt2", "olmo", "mpt", "phi-2", "jais", "trillion"}
DIGIT_SPLIT = {"smollm", "starcoder", "refact", "command-r", "codeshell"}
HUB = "https://huggingface.co"
FORMAT = "2"  # of the converted folders; raise it when the conversion changes, so that older folders are not used


def dequantised(file: Path, name: str, progress: Progress | None = None) -> tuple[Path, str]:
    """The safetensors folder made from a GGUF file, and the file's SHA-256. Converts unless the cache holds the folder.

    `name` is used in messages. Raises: StitchError when the file is damaged, a package is missing or the cache cannot be
    written; UsageError for a tokenizer whose way of splitting text is unknown.
    """
    digest = _sha256(file, progress)
    return made_once(f"gguf/{FORMAT}", digest, name, lambda folder: _convert(file, folder, name, progress)), digest


def require_gguf(file: Path, name: str) -> None:
    """Raises: StitchError where `file` does not begin as a GGUF file does."""
    with open(file, "rb") as stream:
        if stream.read(4) != b"GGUF":
            raise StitchError(f"{name} is not a GGUF file: its first bytes are not 'GGUF'; download it again.")


def _sha256(file: Path, progress: Progress | None) -> str:
    total, done, digest = file.stat().st_size, 0, hashlib.sha256()
    with open(file, "rb") as stream:
        while block := stream.read(1 << 24):
            digest.update(block)
            done += len(block)
            if progress:
                progress(f"reading {file.name}", done, total)
    return digest.hexdigest()


def _convert(file: Path, folder: Path, name: str, progress: Progress | None) -> None:
    """Writes model and tokenizer of a GGUF file to `folder`, in float32: no narrower type holds every dequantised value."""
    require_gguf(file, name)
    require_extra("gguf", f"the model {name}")
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        _require_stored(file, name)
        tokenizer, model = _read(file, name, progress)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / CARD).write_text("\n".join(front_matter(_card(file))), encoding="utf-8")
    except StitchError:
        raise
    except Exception as error:  # gguf and transformers raise errors of any type for an unexpected file
        reason = " ".join(str(error).split())[:200]
        raise StitchError(
            f"{name} cannot be dequantised ({type(error).__name__}: {reason}): use the safetensors model."
        ) from error
    finally:
        if bars:
            logging.enable_progress_bar()


def _require_stored(file: Path, name: str) -> None:
    """Raises: StitchError where the metadata describe a model that the tensors in the file cannot fill."""
    from gguf import GGUFReader

    reader = GGUFReader(file)
    field = reader.get_field("general.architecture")
    family = field.contents() if field else None
    largest = max((int(size) for tensor in reader.tensors for size in tensor.shape), default=0)
    for key, most in (
        ("block_count", len(reader.tensors)),
        ("embedding_length", largest),
        ("feed_forward_length", largest),
    ):
        field = reader.get_field(f"{family}.{key}")
        value = field.contents() if field else None
        if isinstance(value, int) and not 0 < value <= most:
            raise StitchError(
                f"{name} must describe the model in it; {family}.{key} is {value}, and it has {len(reader.tensors)} tensors with "
                f"no dimension above {largest}: download it again."
            )


def _read(file: Path, name: str, progress: Progress | None) -> tuple[Any, Any]:
    """The tokenizer and the model in a GGUF file, with plain float32 weights."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(
        file.parent, gguf_file=file.name, local_files_only=True, trust_remote_code=False
    )
    _restore_splitting(tokenizer, file, name)
    # Unless told otherwise, recent versions leave weights packed where they have a kernel for the device.
    config = getattr(transformers, "GgufConfig", None)
    unpack = {"quantization_config": config(dequantize=True)} if config else {}
    stage = f"dequantising {file.name} (tensors)"
    # One bar is drawn in any case.
    with told(stage, progress), contextlib.redirect_stderr(Drawn(stage, progress)):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            **unpack,
        )
    # transformers refuses to save a model that is marked as quantised, although its weights are plain now.
    vars(model).pop("hf_quantizer", None)
    vars(model.config).pop("quantization_config", None)
    return tokenizer, model


def _card(file: Path) -> dict:
    """What the file says of its licence and of the models it was made from, as metadata of a model card."""
    from gguf import GGUFReader

    reader = GGUFReader(file)

    def value(key: str) -> Any:
        field = reader.get_field(f"general.{key}")
        return field.contents() if field else None

    fields = {"license": "license", "license_name": "license.name", "license_link": "license.link"}
    found = {name: value(key) for name, key in fields.items()}
    places = [value(f"base_model.{number}.repo_url") for number in range(value("base_model.count") or 0)]
    found["base_model"] = [place.removeprefix(f"{HUB}/") for place in places if str(place).startswith(f"{HUB}/")]
    return {name: one for name, one in found.items() if one}


def _restore_splitting(tokenizer: Any, file: Path, name: str) -> None:
    """Makes the tokenizer split text into words as the model's own does; a GGUF file holds only the name of that rule."""
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers

    if not isinstance(tokenizer.backend_tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel):
        return  # not a byte-level BPE, or one whose rule transformers knows
    field = GGUFReader(file).get_field("tokenizer.ggml.pre")
    split = field.contents() if field else None
    if split in DIGIT_SPLIT:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    elif split not in GPT2_SPLIT:
        raise UsageError(
            f"the tokenizer of {name} splits text in a way unknown here ({split}): use the safetensors model."
        )
