"""Models read from local folders: any causal language model, or one whose anatomy is known."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig
from transformers.utils import logging as transformers_logging

from stitch.errors import StitchError, UsageError
from stitch.files.shards import stored_tensors
from stitch.modeling.modeling_composite import (
    StitchConfig,
    StitchForCausalLM,
    parts_of,
)
from stitch.modeling.modeling_recurrent import RecurrentConfig, RecurrentForCausalLM
from stitch.models.anatomy import ANATOMIES, _find, anatomy_of
from stitch.models.model import Model
from stitch.models.sources import Source


def load(
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    trust_remote_code: bool = False,
    name: str | None = None,
) -> Model:
    """The model in `folder`, in `dtype` (None: as stored), in evaluation mode; `name` is how messages call it.

    Raises UsageError for a family without anatomy or quantised weights, StitchError for missing or damaged files.
    """
    name = name or folder.name
    if not (folder / "config.json").is_file():
        raise StitchError(f"a model folder must hold config.json; {folder} does not: check the path.")
    try:
        config = PreTrainedConfig.get_config_dict(folder)[0]
    except (OSError, ValueError) as error:
        raise StitchError(
            f"config.json of {name} must be readable; got {_one_line(error)}: download it again."
        ) from error
    is_composite = config.get("model_type") == StitchConfig.model_type
    if is_composite:
        register_composites()
    else:
        _find(
            config.get("model_type", "unknown"),
            config.get("architectures") or [],
            bool(config.get("is_encoder_decoder")),
        )
    if (quantised := config.get("quantization_config")) is not None:
        method = quantised.get("quant_method", "unknown")
        raise UsageError(
            f"weights must be plain floats; {name} is quantised ({method}): give the unquantised checkpoint or a GGUF."
        )
    stored_tensors(folder)  # headers only: says in one line what is missing, damaged or pickled
    transformers_logging.disable_progress_bar()  # progress is told through callbacks
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype or "auto",
            trust_remote_code=trust_remote_code,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise StitchError(f"{name} must load as a causal language model; got {_one_line(error)}") from error
    net, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise StitchError(f"the weights of {name} are incomplete: {len(missing)} tensors missing, {missing[0]} first.")
    anatomy = anatomy_of(net.config) if is_composite else ANATOMIES[net.config.model_type]
    return Model(name, net.to(device).eval(), tokenizer, anatomy, folder)


def register_composites() -> None:
    """Lets transformers load composites, and recurrent models, with the classes at hand here: they need no remote code."""
    for config, net in ((StitchConfig, StitchForCausalLM), (RecurrentConfig, RecurrentForCausalLM)):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModelForCausalLM.register(config, net, exist_ok=True)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


@dataclass(frozen=True)
class AnyModel:
    """A causal language model of any family: no anatomy is needed to score it."""

    net: nn.Module
    tokenizer: Any
    vocabulary: int
    longest: int | None


def load_any(source: Source, dtype: torch.dtype, device: torch.device, trust_remote_code: bool) -> AnyModel:
    """The model in `source.folder`. Composites need no remote code here: the class that wrote them is at hand."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    register_composites()
    logging.disable_progress_bar()  # progress is told through callbacks
    try:
        net: Any = AutoModelForCausalLM.from_pretrained(
            source.folder, dtype=dtype, trust_remote_code=trust_remote_code, local_files_only=True, use_safetensors=True
        )
        tokenizer = AutoTokenizer.from_pretrained(source.folder, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise StitchError(
            f"{source.name} must load as a causal language model; got {type(error).__name__}: {reason}"
        ) from error
    config = net.config
    limits = [limit for part in parts_of(config) if (limit := getattr(part, "max_position_embeddings", None))]
    return AnyModel(net.to(device).eval(), tokenizer, config.vocab_size, min(limits, default=None))
