"""The text part of a model that also sees or hears: a stock model of text, with the same logits for a text.

It is loaded from the files of the whole model. Tensors of the other parts are not read.
"""

import re
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)

from stitch.files.shards import Stored, stored_tensors
from stitch.models.anatomy import ANATOMIES

SEEING = {*MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, *MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES}
# Their rotary positions have three axes, which count alike in a text.
THREE_AXES = {"qwen2_vl_text": "qwen2", "qwen2_5_vl_text": "qwen2", "qwen3_vl_text": "qwen3"}
# transformers lists the causal class of these text parts under the whole model's name alone.
UNDER_WHOLE = {"emu3_text_model": "emu3"}
# Names in the files of a whole model, and those in a model of text.
NAMES = {
    r"^(?:model\.)?(?:language|text)_model\.model\.": "model.",
    r"^(?:model\.)?(?:language|text)_model\.lm_head\.": "lm_head.",
}
NAMES |= {r"^model\.language_model\.": "model."}
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


def text_config(config: PreTrainedConfig) -> PreTrainedConfig | None:
    """The config of the text part of the model that `config` describes.

    None for a model of text alone, for one with an encoder, and for one whose text part is not a causal model of transformers.
    A model that transformers itself loads as a causal one is cut only where the family of its text part is in ANATOMIES.
    """
    text = config.get_text_config(decoder=True)
    if config.model_type not in SEEING or text is config or config.is_encoder_decoder or text.is_encoder_decoder:
        return None
    family = THREE_AXES.get(text.model_type, text.model_type)
    known = ANATOMIES if config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if family in UNDER_WHOLE:
        _list(family)
    elif family not in known:
        return None
    values = {name: value for name, value in text.to_dict().items() if name != "model_type"}
    values |= {name: getattr(config, name, None) for name in SPECIAL if values.get(name) is None}
    values |= {"tie_word_embeddings": config.tie_word_embeddings, "dtype": text.dtype or config.dtype}
    if (method := getattr(config, "quantization_config", None)) is not None:
        values.setdefault("quantization_config", method)
    if text.model_type in THREE_AXES:
        rope = values["rope_parameters"].items()
        values["rope_parameters"] = {name: value for name, value in rope if name != "type" and "mrope" not in name}
    values["architectures"] = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[UNDER_WHOLE.get(family, family)]]
    return AutoConfig.for_model(family, **values)


def text_part(folder: Path) -> PreTrainedConfig | None:
    """As `text_config`, of the model in `folder`. None also where transformers cannot read config.json."""
    try:
        kind = PreTrainedConfig.get_config_dict(folder)[0].get("model_type")
        if kind in UNDER_WHOLE:
            _list(kind)
        if kind not in SEEING:
            return None
        return text_config(AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True))
    except Exception:  # of the family's config, which raises errors of any type
        return None


def _list(family: str) -> None:
    """Lets transformers' automatic classes load a text part by its own config."""
    cls = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[UNDER_WHOLE[family]])
    AutoModelForCausalLM.register(cls.config_class, cls, exist_ok=True)


def text_note(folder: Path) -> str | None:
    """What a report says of the model in `folder` where its text part alone is used."""
    text = text_part(folder)
    if text is None:
        return None
    whole = PreTrainedConfig.get_config_dict(folder)[0]["model_type"]
    return f"the text part of a {whole} alone, a {text.model_type}"


def loading_arguments(folder: Path) -> dict[str, Any]:
    """What `from_pretrained` needs to load the text part of the model in `folder`; nothing for a model of text alone."""
    text = text_part(folder)
    return {} if text is None else {"config": text, "key_mapping": NAMES}


def text_tensors(folder: Path) -> dict[str, Stored]:
    """As `stored_tensors`; of a model that also sees, the tensors of its text part alone, by the names in that part."""
    stored, text = stored_tensors(folder), text_part(folder)
    if text is None:
        return stored
    with torch.device("meta"):
        wanted = AutoModelForCausalLM.from_config(text).state_dict().keys()
    named = {_text_name(name): tensor for name, tensor in stored.items()}
    return {name: tensor for name, tensor in named.items() if name in wanted}


def is_of_text(folder: Path, name: str) -> bool:
    """Whether the tensor `name` in `folder` belongs to a model of text; of a model that also sees, to its text part."""
    return text_part(folder) is None or _text_name(name).startswith("model.layers.")


def _text_name(name: str) -> str:
    for pattern, own in NAMES.items():
        name, changed = re.subn(pattern, own, name)
        if changed:
            break
    return name
