"""Parameter counts and FLOPs of a model's blocks, computed from its config."""

from functools import lru_cache
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from stitch.modeling.modeling_composite import StitchConfig, sliding_windows


def block_parameters(config: PreTrainedConfig, block: int) -> int:
    """Parameter count of block `block`, taken from a model on torch's meta device, which allocates no memory."""
    if isinstance(config, StitchConfig):
        return block_parameters(*_in_its_part(config, block))
    return _parameters(_AsText(config))[block]


class _AsText:
    """A config that is hashed and compared by its content."""

    def __init__(self, config: PreTrainedConfig):
        self.config = config
        self.text = f"{type(config).__name__} {config.to_json_string(use_diff=False)}"

    def __hash__(self) -> int:
        return hash(self.text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _AsText) and self.text == other.text


@lru_cache(maxsize=64)
def _parameters(of: _AsText) -> list[int]:
    """The counts of all blocks. Costs of a pair of models ask for them many times, and to build a model takes a second."""
    depth = of.config.get_text_config(decoder=True).num_hidden_layers
    with torch.device("meta"):
        net = AutoModelForCausalLM.from_config(of.config)
    lists = [module for module in net.modules() if isinstance(module, nn.ModuleList) and len(module) == depth]
    return [sum(parameter.numel() for parameter in block.parameters()) for block in lists[0]]


def block_flops(config: PreTrainedConfig, block: int, context: int) -> float:
    """Floating-point operations per token of one block: 2 per parameter, and 4 · heads · head width per key attended to.

    The number of keys is the mean over a causal window of `context` tokens, fewer where the block has sliding-window
    attention. A composite's translation is counted with the block after it.
    """
    if isinstance(config, StitchConfig):
        part, own = _in_its_part(config, block)
        seam = 2.0 * _multiply_adds(config.translation) if block == config.site_a else 0.0
        return seam + block_flops(part, own, context)
    text: Any = config.get_text_config(decoder=True)
    own = (
        text.per_layer_config[block] if getattr(text, "is_heterogeneous", False) else text
    )  # a Gemma 4 has two sizes of heads
    heads = getattr(own, "num_attention_heads", 0)  # a Mamba has none
    head_width = getattr(own, "head_dim", None) or own.hidden_size // max(1, heads)
    reach = min(sliding_windows(config)[block] or context, context)
    keys = (reach * (reach + 1) / 2 + (context - reach) * reach) / context
    return 2.0 * block_parameters(config, block) + 4.0 * heads * head_width * keys


def _in_its_part(config: StitchConfig, block: int) -> tuple[PreTrainedConfig, int]:
    """The config of the half of a composite that contains block `block`, and the block's index there."""
    early = config.site_a
    return (config.a_config, block) if block < early else (config.b_config, config.site_b + block - early)


def _multiply_adds(translation: dict) -> int:
    """Multiply-adds per token of a `TranslationModule`; see `Translation.multiply_adds`."""
    total = 0
    for term in translation["terms"]:
        read = term.get("features", term.get("width", 0))  # tables have neither
        total += 0 if term.get("identity") else read * translation["width"]
        total += term["width"] * term["features"] if term["kind"] == "codes" else 0
        total += term["rank"] * translation["width"] if term.get("basis") else 0
        if fallback := term.get("fallback"):
            total += round(fallback["share"] * fallback["width"] * translation["width"])
    return total
