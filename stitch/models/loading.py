"""Models loaded from local folders: of a family with a known anatomy, or any causal language model."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from stitch.errors import StitchError, UsageError
from stitch.files.headers import verify_weights
from stitch.files.shards import stored_tensors
from stitch.modeling.modeling_composite import (
    StitchBaseModel,
    StitchConfig,
    StitchForCausalLM,
    longest_context,
    parts_of,
)
from stitch.modeling.modeling_recurrent import RecurrentConfig, RecurrentForCausalLM
from stitch.models.anatomy import anatomy_of, entry_of
from stitch.models.bars import told
from stitch.models.causal import require_causal
from stitch.models.described import require_described, require_stored
from stitch.models.donor_code import is_foreign, take_code
from stitch.models.finite import require_finite
from stitch.models.flow import one_line
from stitch.models.given_anatomy import flow_and_anatomy
from stitch.models.model import Model
from stitch.models.model_folder import read_config
from stitch.models.quantised import require_plain
from stitch.models.same_size import require_same_size
from stitch.models.sources import Source
from stitch.models.text_part import loading_arguments, text_tensors
from stitch.models.usable import require_decoder
from stitch.progress import Progress


def load(
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    trust_remote_code: bool = False,
    name: str | None = None,
    progress: Progress | None = None,
) -> Model:
    """The model in `folder`, in `dtype` (None: as stored) and in evaluation mode; `name` is used in messages.

    Of a model that also sees or hears, its text part.
    Raises: UsageError for a model that is no causal decoder and for quantised weights; StitchError for missing or damaged files.
    """
    name = name or folder.name
    _check(folder, name)
    net, tokenizer, missing = _from_pretrained(folder, name, dtype or "auto", trust_remote_code, progress)
    if missing:
        raise StitchError(
            f"the weights of {name} must be those of a whole causal model; {len(missing)} tensors are missing, {missing[0]} "
            "first: download it again, or choose one with such a head."
        )
    of_others = {role: is_foreign(type(one)) for role, one in (("net", net), ("config", net.config))}
    if of_others == {"net": True, "config": False}:  # what is made from its config would be another model
        raise UsageError(
            f"code that comes with a model must have a class for its config too; {name} has {type(net).__name__} alone, and the "
            f"{type(net.config).__name__} of transformers: add one that is derived from it, and name it in `auto_map`."
        )
    net = net.to(device).eval()
    if isinstance(net.config, StitchConfig):
        _require_running(net, name)
    given = None if isinstance(net.config, StitchConfig) else entry_of(net.config)
    if isinstance(net.config, StitchConfig) or (given and given.tested):
        return Model(name, net, tokenizer, anatomy_of(net.config), folder)
    flow, anatomy = flow_and_anatomy(net, given)
    require_causal(net, name)
    return Model(name, net, tokenizer, anatomy, folder).with_flow(flow)


def _check(folder: Path, name: str) -> None:
    """Checks config.json and the headers of the weights before anything is loaded."""
    config = read_config(folder, name)
    require_described(config, name)
    require_decoder(folder, config)
    require_plain(config, name)
    stored_tensors(folder)  # raises a one-line error for missing, damaged or pickled weights
    require_stored(config, verify_weights(folder), name)


def _from_pretrained(
    folder: Path, name: str, dtype: torch.dtype | str, trust_remote_code: bool, progress: Progress | None = None
) -> tuple[Any, Any, list[str]]:
    """Model, tokenizer and the names of tensors that the files lack, as transformers loads them.

    Raises: StitchError with transformers' reason when it fails.
    """
    register_composites()
    transformers_logging.disable_progress_bar()  # progress is reported by callbacks
    text = loading_arguments(folder)
    with of_transformers(name), told(f"loading {name} (tensors)", progress):
        if trust_remote_code:
            take_code(folder, read_config(folder, name))
        _require_same_size(folder, name, text.get("config"), trust_remote_code)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            **text,
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    net, report = loaded
    require_finite(net, text_tensors(folder), name)
    if text:
        vars(net).pop("_weight_conversions", None)  # save_pretrained would write the names of the whole model
    return net, tokenizer, sorted(report["missing_keys"])


@contextmanager
def of_transformers(name: str) -> Iterator[None]:
    """Makes one line of what transformers raises where it reads the model `name`; its families raise errors of any type.

    Raises: UsageError for code of others without leave to run it; StitchError for anything else.
    """
    try:
        yield
    except StitchError:
        raise
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise UsageError(
                f"{name} brings code of its own, which runs on your machine: read it, and set `trust_remote_code` to allow it."
            ) from error
        raise StitchError(f"{name} must load as a causal language model; got {one_line(error)}") from error


def _require_same_size(folder: Path, name: str, text: PreTrainedConfig | None, trust_remote_code: bool) -> None:
    """Raises: StitchError where the weights cannot be those of the model that config.json, or `text`, describes."""
    config = text or AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    if not type(config).__module__.startswith(("transformers.", "stitch.")):
        return  # code of others, which may build anything
    with torch.device("meta"):
        net = AutoModelForCausalLM.from_config(config)
    require_same_size(net, text_tensors(folder), name)


@torch.no_grad()
def _require_running(net: PreTrainedModel, name: str) -> None:
    """Raises: StitchError where the parts of a composite do not do what its config says of them, as `flow` of another family."""
    try:
        net(torch.zeros(1, 2, dtype=torch.long, device=net.device))
    except Exception as error:  # of a family's code that is given what it does not expect
        raise StitchError(
            f"{name} must run as its config.json says; got {one_line(error)}: write or download it again."
        ) from error


def open_folder(folder: Path, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """The model in `folder` as it is stored, in evaluation mode, and its tokenizer.

    Raises: UsageError where code of the folder would run and may not; StitchError when transformers cannot load it.
    """
    net, tokenizer, _ = _from_pretrained(folder, folder.name, "auto", trust_remote_code)
    return net.eval(), tokenizer


def register_composites() -> None:
    """Lets transformers load composites and recurrent models with this package's classes, without remote code."""
    for config, net in ((StitchConfig, StitchForCausalLM), (RecurrentConfig, RecurrentForCausalLM)):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModelForCausalLM.register(config, net, exist_ok=True)
    AutoModel.register(StitchConfig, StitchBaseModel, exist_ok=True)


@dataclass(frozen=True)
class AnyModel:
    """A causal language model of any family, with what scoring needs; its anatomy is not known."""

    net: nn.Module
    tokenizer: Any
    vocabulary: int
    longest: int | None  # positions that all parts accept; None where the config does not say


def load_any(
    source: Source,
    dtype: torch.dtype,
    device: torch.device,
    trust_remote_code: bool,
    progress: Progress | None = None,
) -> AnyModel:
    """The model in `source.folder`, in evaluation mode. Raises: StitchError when transformers cannot load it."""
    net, tokenizer, _ = _from_pretrained(source.folder, source.name, dtype, trust_remote_code, progress)
    config = net.config
    limits = [limit for part in parts_of(config) if (limit := longest_context(part))]
    return AnyModel(
        net.to(device).eval(), tokenizer, config.get_text_config(decoder=True).vocab_size, min(limits, default=None)
    )
