"""A small copy of a model, from its config.json alone: the same class, blocks and lists with an entry per block, narrow, with
weights drawn at random.

Sizes are known by their names, which families share. All widths are divided by one number, numbers of heads and dimensions of a
head by two factors of it, so that sizes that depend on each other still fit. What is not a size stays as it is: number of blocks,
kinds of blocks, windows, factors.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from sae.json_file import read_object
from stitch.modeling.modeling_composite import StitchConfig
from stitch.modeling.modeling_recurrent import RecurrentConfig
from stitch.models.anatomy import ANATOMIES
from stitch.models.given_anatomy import flow_and_anatomy
from stitch.models.model import Model
from stitch.models.text_part import text_part

OURS = (StitchConfig.model_type, RecurrentConfig.model_type)
LARGEST = 1e8  # parameters and other values of a small copy
DEEPEST = 256  # blocks
WIDTH = 16  # that a stream has at least
HEADS = 4  # of attention or of a state space model that a block has at least, of some kind
DIMENSIONS = (8, 4, 2)  # that a head has at least: what is tried, one after the other
TOKENS = 128  # in the vocabulary, at most
POSITIONS = 256  # at most
CHUNK = 16  # tokens that a state space model takes together, at most: more than the texts have that are tried
FREE = 8  # of sizes that depend on no other, at most
EXPERTS, CHOSEN = 4, 2  # in a mixture and of those that run, at most

# Integers, or lists of them with one for each block, by their names.
NAMES = {
    kind: re.compile(pattern)
    for kind, pattern in {
        "blocks": r"(layers|n_layer|depth)$",
        "dimensions": r"(head_?dim|dim_head|d_head|head_size|rotary_dim|d_kv|kv_channels)$",
        "heads": r"(heads?|heads_per_layer|n_?groups|o_groups|num_query_groups)$",
        "widths": (
            r"(hidden_size|intermediate_size|intermediate_size_mlp|n_embd|d_model|ffn_dim|n_inner|d_inner|d_ff|dff|dim_ff|"
            r"emb_dim|embed_dim|embed_proj_dim|embedding_dim|embedding_size|hidden_dim|ffn_hidden_size|feed_forward_size|"
            r"lru_width|mamba_d_ssm|dim_model_base|hidden_size_per_layer_input)$"
        ),
        "free": r"(rank|state_size|d_state|lowrank)$",
        "vocabulary": r"(vocab_size|vocab_size_per_layer_input)$",
        "tokens": r"(token_ids?|token_index)$",
        "positions": r"^(max_position_embeddings|n_positions|n_ctx|max_seq_len|max_target_positions|model_max_length)$",
        "chunks": r"^(mamba_)?chunk_size$",
        "groups": r"^(n_group|num_expert_group)$",
        "chosen": r"(experts_per_tok(en)?|^moe_k|^(moe_)?top_?k)$",
        "experts": r"(?<!shared_)experts$",
    }.items()
}


def small_model(folder: Path, name: str, trust_remote_code: bool = False) -> Model | None:
    """A small copy of the model whose config.json is in `folder`, without a tokenizer.

    None for families that are known by name, composites, models with code of their own, and whatever cannot be made small or
    does not read a text when it is.
    Raises: UsageError where its blocks are no chain.
    """
    config = _config(folder, trust_remote_code)
    if config is None:
        return None
    given = ANATOMIES.get(config.model_type)
    if given is not None and given.tested:
        return None
    net = _net(config)
    if net is None:
        return None
    flow, anatomy = flow_and_anatomy(net, given)
    tokenizer = SimpleNamespace(bos_token_id=None, eos_token_id=None)
    return Model(name, net, tokenizer, anatomy, folder).with_flow(flow)


def depth_of(folder: Path) -> int | None:
    """Number of blocks of the model whose config.json is in `folder`; None for a composite, and where it cannot be read."""
    config = _config(folder, trust_remote_code=False)
    return None if config is None else getattr(config.get_text_config(decoder=True), "num_hidden_layers", None)


def _config(folder: Path, trust_remote_code: bool) -> PreTrainedConfig | None:
    """The config with which the model in `folder` is loaded; of a multimodal model, that of its text part.

    None where it cannot be read, and where transformers has no causal model for it.
    """
    try:
        described = read_object(folder / "config.json")
        if described.get("model_type") in OURS or (trust_remote_code and "auto_map" in described):
            return None
        config = text_part(folder) or AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception:  # of the family's config, which raises errors of any type
        return None
    return config if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else None


@torch.no_grad()
def _net(config: PreTrainedConfig) -> PreTrainedModel | None:
    """A small model of `config` that reads a text; None where none does."""
    for least in DIMENSIONS:
        try:
            small = small_config(config, least)
            if max(_sizes(small.to_dict(), "blocks"), default=0) > DEEPEST:
                return None
            with torch.device("meta"):
                empty = _made(small)
            if sum(one.numel() for one in [*empty.parameters(), *empty.buffers()]) > LARGEST:
                continue
            net = drawn(lambda small=small: _made(small))
            read = net(input_ids=torch.arange(2, 8)[None], use_cache=False).logits
        except Exception:  # of the family's code, whose sizes may depend on one another in a way of its own
            continue
        if bool(read.isfinite().all()):
            return net
    return None


def _made(small: PreTrainedConfig) -> PreTrainedModel:
    """Without the code that a config may name, which nobody has allowed to run."""
    return AutoModelForCausalLM.from_config(small, dtype=torch.float32, trust_remote_code=False)


def drawn(make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """The model that `make` returns, with weights so large that every block changes the logits by whole units."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2:
                parameter.copy_(noise if "emb" in name else noise * parameter.shape[-1] ** -0.5)
            else:
                parameter.add_(0.1 * noise)
    return model


def small_config(config: PreTrainedConfig, least: int) -> PreTrainedConfig:
    """A narrow copy of `config`, with heads of at least so many dimensions. Raises: whatever the family raises of its sizes."""
    whole, decoder = config.to_dict(), config.get_text_config(decoder=True)
    text = decoder.to_dict()
    width, count, dimensions = (
        text.get(decoder.attribute_map.get(name, name)) for name in ("hidden_size", "num_attention_heads", "head_dim")
    )
    heads, found = [*_sizes(text, "heads")], [*_sizes(text, "dimensions")]
    count = count or max(heads, default=None)
    if dimensions is None and isinstance(width, int) and isinstance(count, int) and not width % count:
        found.append(width // count)
    shrink = _Shrink(text, width or WIDTH, *_factors(heads, found, width or WIDTH, least), min(4, least))
    return type(config).from_dict(
        shrink.all({name: one for name, one in whole.items() if name != "quantization_config"})
    )


def _factors(heads: list[int], dimensions: list[int], width: int, least: int) -> tuple[int, int]:
    """By what numbers of heads and dimensions of a head can be divided, such that the stream keeps a width of WIDTH."""
    most = max(1, width // WIDTH)
    shared = math.gcd(*dimensions)
    of_dimensions = max(
        (one for one in range(1, min(shared, most) + 1) if shared % one == 0 and min(dimensions) // one >= least),
        default=1,
    )
    shared, most = math.gcd(*heads), most // of_dimensions
    of_heads = max(
        (one for one in range(1, min(shared, most) + 1) if shared % one == 0 and max(heads) // one >= HEADS), default=1
    )
    return of_heads, of_dimensions


def _kind(name: Any) -> str | None:
    return next((kind for kind, names in NAMES.items() if names.search(str(name))), None)


def _sizes(values: Mapping[str, Any], kind: str) -> Iterator[int]:
    """Sizes above 1 of one kind, also in parts of a config."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _sizes(value, kind)
        elif _kind(name) == kind:
            yield from (one for one in (value if isinstance(value, list) else [value]) if type(one) is int and one > 1)


class _Shrink:
    """Makes the sizes in a config smaller, all by the same factors."""

    def __init__(self, text: Mapping[str, Any], width: int, of_heads: int, of_dimensions: int, step: int):
        """`text` is the config, or its part, of the decoder, `step` what widths are rounded up to a multiple of.

        Some kernels want rows of 16 bytes.
        """
        self.of_heads, self.of_dimensions, self.step = of_heads, of_dimensions, step
        # Where there are no heads, nothing says by how much the width can be divided.
        has_heads = any(True for _ in _sizes(text, "heads"))
        self.of_widths = of_heads * of_dimensions if has_heads else max(1, width // (2 * WIDTH))
        self.groups = max(_sizes(text, "groups"), default=1)
        self.extends = "original_max_position_embeddings" in str(text)  # positions, by a ratio to those in training

    def all(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: self.value(name, value) for name, value in values.items()}

    def value(self, name: str, value: Any) -> Any:
        if isinstance(value, dict):
            return self.all(value)
        if name in ("long_factor", "short_factor") and isinstance(value, list):
            return value[:: self.of_dimensions]
        if name == "mrope_section" and isinstance(value, list):
            return _shares(value, sum(value) // self.of_dimensions)
        kind = _kind(name)
        if kind is None:
            return value
        if isinstance(value, list):
            return [self.size(kind, one) for one in value]
        return self.size(kind, value)

    def size(self, kind: str, size: Any) -> Any:
        if type(size) is not int or size < 2:
            return size
        if kind == "heads":
            return max(1, size // self.of_heads)
        if kind == "dimensions":
            return max(1, size // self.of_dimensions)
        if kind == "widths":
            return max(FREE, self.step * math.ceil(size / self.of_widths / self.step))
        if kind == "tokens":
            return size if size < TOKENS else 1
        if kind == "experts":
            return min(size, self.groups * max(2, EXPERTS // self.groups))
        if kind in ("blocks", "groups") or (kind == "positions" and self.extends):
            return size
        most = {"free": FREE, "vocabulary": TOKENS, "positions": POSITIONS, "chunks": CHUNK, "chosen": CHOSEN}
        return min(size, most[kind])


def _shares(sizes: list[int], total: int) -> list[int]:
    """`sizes` made smaller, such that they sum to `total`."""
    ends = [round(total * sum(sizes[: number + 1]) / sum(sizes)) for number in range(len(sizes))]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]
