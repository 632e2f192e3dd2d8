"""Folders of models and composites whose config.json is damaged."""

import json
from pathlib import Path
from typing import Any

from fuzz.folders import folder_door, json_file

SIZES = (
    *("vocab_size", "hidden_size", "n_embd", "num_hidden_layers", "n_layer", "num_attention_heads", "n_head"),
    *("head_dim", "num_key_value_heads", "intermediate_size", "n_inner", "max_position_embeddings", "n_positions"),
)
OPTIONAL = ("n_inner", "head_dim", "num_key_value_heads")
COMPUTED = ("hidden_size", "num_attention_heads")  # of a composite, from its parts
EPSILONS = ("layer_norm_epsilon", "rms_norm_eps")


def gpt2(folder: Path) -> Path:
    import tiny

    return tiny.save(folder / "gpt2-7f3", "gpt2")


def llama(folder: Path) -> Path:
    import tiny

    return tiny.save(folder / "llama-7f3", "llama")


def composite(folder: Path) -> Path:
    import composites

    return composites.write(folder).rename(folder / "composite-7f3")


def load_model(folder: Path) -> Any:
    from stitch.models.loading import load
    from stitch.models.sources import resolve

    return load(resolve(str(folder)).folder)


def is_sound(folder: Path, model: Any) -> bool:
    """The model computes finite logits for every entry of its vocabulary, and what its config says is what it is."""
    import torch

    with torch.no_grad():
        logits = model.net(torch.tensor([[0, 5, 9, 13]])).logits
    whole = json.loads((folder / "config.json").read_bytes())
    parts = [one for one in (whole.get("a_config"), whole.get("b_config")) if isinstance(one, dict)]
    if parts:
        whole = {name: value for name, value in whole.items() if name not in COMPUTED or value is not None}
    return bool(
        logits.shape[:2] == (1, 4)
        and logits.shape[2] == model.net.config.vocab_size
        and logits.isfinite().all()
        and all(config_is_sound(one) for one in (whole, *parts))
    )


def config_is_sound(config: dict) -> bool:
    """Sizes are whole numbers above zero; rates, epsilons and ids are what such numbers can be."""
    sizes = [config[name] for name in SIZES if name in config and not (name in OPTIONAL and config[name] is None)]
    rates = [value for name, value in config.items() if name.endswith(("pdrop", "dropout"))]
    epsilons = [config[name] for name in EPSILONS if name in config]
    ids = [config.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")]
    ids = [one for each in ids for one in (each if isinstance(each, list) else [each]) if one is not None]
    return bool(
        all(type(size) is int and 0 < size < 2**31 for size in sizes)
        and all(type(rate) in (int, float) and 0 <= rate <= 1 for rate in rates)
        and all(type(epsilon) in (int, float) and 0 <= epsilon < 1 for epsilon in epsilons)
        and all(type(one) is int and -1 <= one < 2**31 for one in ids)
    )


CASES = json_file("config.json", ["float99", "float16", "gpt2", "llama", "gelu", "silu", "eager", 64, 10**6])
DOORS = [
    folder_door(f"config.json of {make.__name__}", make, CASES, load_model, is_sound)
    for make in (gpt2, llama, composite)
]
