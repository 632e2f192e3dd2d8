"""Compiled models on disk: stock checkpoints, with the description of what they were compiled from."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from stitch.models.model import Model
from stitch.models.model_folder import check_model_folder
from stitch.synthesis.description import FILE


def save(model: Model, description: dict, folder: Path) -> None:
    """Writes the checkpoint to the new folder `folder`."""
    logging.disable_progress_bar()
    folder.mkdir(parents=True)
    model.net.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    (folder / FILE).write_text(json.dumps(description, indent=1, ensure_ascii=False) + "\n")


def load(folder: Path, dtype: torch.dtype, attention: str, device: str = "cpu") -> PreTrainedModel:
    """Loads a checkpoint with transformers alone, without code of this package.

    Raises: UsageError where it has no safetensors weights; StitchError where they are damaged or config.json is not theirs.
    """
    check_model_folder(folder, folder.name)
    logging.disable_progress_bar()
    net: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation=attention, trust_remote_code=False, use_safetensors=True
    )
    return net.to(device).eval()
