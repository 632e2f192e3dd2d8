"""Quantised weights in safetensors, dequantised once on a CPU by transformers into folders in the user cache.

fp8                 blocks or whole matrices with scales (`weight_scale_inv`), as of DeepSeek-V3
mxfp4               experts of gpt-oss
compressed-tensors  as of llm-compressor
bitsandbytes        4 or 8 bits

Other methods, such as GPTQ and AWQ, are refused: transformers does not dequantise them on a CPU, or it was not tried.
"""

import importlib.util
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stitch.errors import EXTRAS, StitchError, UsageError, missing_extra
from stitch.files.front_matter import CARD
from stitch.files.links import require_inside
from stitch.files.tokenizer import copy_tokenizer
from stitch.models.bars import told
from stitch.models.made_once import made_once
from stitch.progress import Progress

# By method, the modules that transformers needs for it, of those in the extra `quantised`.
NEEDS = {
    "fp8": ("accelerate",),
    "mxfp4": (),
    "compressed-tensors": ("accelerate", "compressed_tensors"),
    "bitsandbytes": ("accelerate", "bitsandbytes"),
}
FORMAT = "dequantised/1"  # raise the number when the conversion changes, so that older folders are not used
# Tensors that stand beside quantised weights: one that transformers does not read means that a weight is not what it says.
COMPANIONS = re.compile(
    r"\.weight_(scale|packed|zero_point|global)|\.(qweight|qzeros|scales|absmax|SCB)$|_(blocks|scales)$"
)


def method_of(config: Mapping[str, Any]) -> str | None:
    """How the weights of the model whose config.json was read as `config` are quantised; None where they are plain."""
    inner = config.get("text_config")
    for holder in (config, inner if isinstance(inner, dict) else {}):
        for key in ("quantization_config", "compression_config"):
            if found := holder.get(key):
                found = found if isinstance(found, dict) else {}
                in_bits = found.get("load_in_4bit") or found.get("load_in_8bit")
                return found.get("quant_method") or ("bitsandbytes" if in_bits else "unknown")
    return None


def require_plain(config: Mapping[str, Any], name: str) -> None:
    """Raises: UsageError where the weights of the model `name` are quantised."""
    if method := method_of(config):
        raise UsageError(
            f"weights must be plain floats; those of {name} are quantised ({method}): give the model by its name or folder, "
            "or use the unquantised checkpoint."
        )


def require_dequantisable(config: Mapping[str, Any], name: str) -> None:
    """Raises: UsageError where the weights of the model `name` are quantised in a way that is not undone here."""
    method = method_of(config)
    if method is None:
        return
    if method not in NEEDS:
        raise UsageError(
            f"weights must be plain floats or quantised by {', '.join(NEEDS)} or GGUF; those of {name} are quantised ({method}): "
            "use the unquantised checkpoint or a GGUF file."
        )
    if missing := [EXTRAS["quantised"][one] for one in NEEDS[method] if importlib.util.find_spec(one) is None]:
        raise missing_extra("quantised", f"the model {name}, quantised by {method},", missing)


def dequantised(folder: Path, method: str, name: str, progress: Progress | None = None) -> Path:
    """The folder made from `folder`, with plain weights. `name` is used in messages.

    Weights are float32, as no narrower type holds every value; those of mxfp4 have the type in config.json, which holds theirs.
    Raises: StitchError when transformers cannot load the model or leaves tensors out, or the cache cannot be written.
    """
    from stitch.models.identity import weights_hash

    def make(target: Path) -> None:
        with told(f"dequantising {name} (tensors)", progress):
            net = _read(folder, method, name)
        net.save_pretrained(target, save_original_format=False)  # the original format is quantised
        copy_tokenizer(folder, target)
        if (folder / CARD).is_file():
            require_inside(folder / CARD, folder)
            shutil.copyfile(folder / CARD, target / CARD)

    return made_once(FORMAT, weights_hash(folder, progress), name, make)


def _read(folder: Path, method: str, name: str) -> Any:
    """The model in `folder` with plain weights."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging
    from transformers.utils.quantization_config import CompressedTensorsConfig, FineGrainedFP8Config, Mxfp4Config

    from stitch.models.text_part import is_of_text, loading_arguments

    settings = {
        "fp8": FineGrainedFP8Config, "mxfp4": Mxfp4Config, "compressed-tensors": CompressedTensorsConfig,
    }.get(method)  # fmt: skip
    more: dict[str, Any] = (
        {"quantization_config": settings(dequantize=True)} if settings else {"device_map": {"": "cpu"}}
    )
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # transformers warns that it dequantises, as it was asked to
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype="auto" if method == "mxfp4" else torch.float32, local_files_only=True,
                use_safetensors=True, trust_remote_code=False, output_loading_info=True, **more, **loading_arguments(folder),
            )  # fmt: skip
        net, report = loaded
        if settings is None:
            net = net.dequantize(dtype=torch.float32)
    except Exception as error:  # of a package for the method, which raises errors of any type
        reason = " ".join(str(error).split())[:200]
        raise StitchError(
            f"{name} cannot be dequantised ({method}; {type(error).__name__}: {reason}): use the unquantised checkpoint."
        ) from error
    strays = [one for one in report["unexpected_keys"] if COMPANIONS.search(one) and is_of_text(folder, one)]
    lost = sorted([*report["missing_keys"], *strays])
    packed = [one for one, weight in net.named_parameters() if not weight.is_floating_point() or weight.itemsize < 2]
    if lost or packed:
        raise StitchError(
            f"{name} must be dequantised whole; {len(lost) + len(packed)} tensors are not ({method}), {[*lost, *packed][0]} "
            "first: use the unquantised checkpoint."
        )
    return net
