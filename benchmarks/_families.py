"""A pico model of every entry in transformers' table of causal language models: six blocks, widths of a few dozen.

Sizes are given by the names that configs share; `OWN` has what a family needs beside them.
"""

import copy
import inspect
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from stitch.models.pico import drawn

KINDS = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)

SIZES: dict[str, Any] = {
    name: size
    for size, names in {
        128: ("vocab_size vocab_size_per_layer_input max_position_embeddings n_positions n_ctx max_seq_len"),
        48: "intermediate_size n_inner ffn_dim d_ff dff encoder_ffn_dim decoder_ffn_dim intermediate_size_mlp",
        32: "hidden_size n_embd d_model dim embedding_size lru_width word_embed_proj_dim dim_model_base",
        24: "moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size",
        16: "q_lora_rank kv_lora_rank qk_head_dim",
        8: (
            "head_dim qk_rope_head_dim qk_nope_head_dim v_head_dim state_size mamba_d_state mamba_n_heads mamba_d_head "
            "mamba_num_heads mamba_head_dim ssm_state_size chunk_size mamba_chunk_size linear_key_head_dim linear_value_head_dim "
            "query_pre_attn_scalar linear_head_dim hidden_size_per_layer_input index_head_dim"
        ),
        6: "num_hidden_layers n_layer n_layers num_layers decoder_layers",
        5: "sliding_window attention_window_size attention_chunk_size",
        4: (
            "num_attention_heads n_head n_heads num_heads decoder_attention_heads attention_heads num_experts n_routed_experts "
            "num_local_experts moe_num_experts time_step_rank mamba_dt_rank linear_num_value_heads linear_num_heads index_topk"
        ),
        2: (
            "num_key_value_heads num_experts_per_tok moe_k moe_topk num_experts_per_token expand linear_num_key_heads "
            "index_n_heads"
        ),
        1: (
            "n_shared_experts num_shared_experts n_group topk_group mamba_n_groups n_groups first_k_dense_replace "
            "num_dense_layers moe_layer_start_index pad_token_id"
        ),
        0: "bos_token_id eos_token_id",
        64: "mamba_d_ssm",
    }.items()
    for name in names.split()
}
HALF_AND_HALF = 3  # times a pair of layer types
OWN: dict[str, dict] = {
    "bamba": {"attn_layer_indices": [2, 5]},
    "codegen": {"rotary_dim": 8},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "dots3_note_text": {"num_key_value_heads": 4},
    "falcon": {"ffn_hidden_size": 24},  # fewer neurons than characters in a text, on which alone those of its first block depend
    "gemma3n_text": {
        "num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * HALF_AND_HALF, "laurel_rank": 4,
        "activation_sparsity_pattern": [0.0] * 6,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], HALF_AND_HALF]]},
    "gptj": {"rotary_dim": 8},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * HALF_AND_HALF},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * HALF_AND_HALF},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "roc_bert": {
        "pronunciation_vocab_size": 64, "shape_vocab_size": 64, "shape_embed_dim": 16, "pronunciation_embed_dim": 16,
    },
    "zamba2": {"layers_block_type": ["mamba", "hybrid"] * HALF_AND_HALF, "hybrid_layer_ids": [1, 3, 5]},
    "zamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "xmod": {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
LARGEST = 2e7  # parameters


def config(kind: str) -> PreTrainedConfig:
    """A small config of the family. Raises: whatever a family raises whose sizes depend on one another in a way of its own."""
    return _small(CONFIG_MAPPING[kind], OWN.get(kind, {}))


def _small(cls: Any, own: dict) -> PreTrainedConfig:
    names = set(inspect.signature(cls.__init__).parameters) | set(getattr(cls, "attribute_map", {}))
    if "is_decoder" in names and "encoder_layers" not in names and not hasattr(cls, "d_model"):
        own = {"is_decoder": True, **own}  # families with an encoder of the same class attend to both sides otherwise
    names |= {name for base in cls.__mro__ for name in getattr(base, "__annotations__", {})}
    other = getattr(cls, "attribute_map", {})  # a name and the name that this config has for it
    given = {name: size for name, size in SIZES.items() if name in names and other.get(name) not in SIZES}
    if "kv_lora_rank" in names and "num_key_value_heads" in given:  # latent attention has as many key heads as heads
        given["num_key_value_heads"] = SIZES["num_attention_heads"]
    for name in getattr(cls, "sub_configs", None) or {}:
        part = getattr(cls(), name, None) if name not in own else None
        if part is not None:
            given[name] = _small(type(part), {})
    return cls(**{**given, **own})


def net(kind: str) -> PreTrainedModel:
    """A model with weights so large that every block changes the logits by whole units.

    Raises: ValueError where it is not small.
    """
    small = config(kind)
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(small).parameters())
    if count > LARGEST:
        raise ValueError(f"a pico {kind} has {count:,} parameters")
    return drawn(lambda: AutoModelForCausalLM.from_config(small, dtype=torch.float32))


def with_window(net: PreTrainedModel, tokens: int) -> PreTrainedModel:
    """As `net`, with sliding windows of attention of `tokens` tokens. It is made again: some families have weights as long."""
    wide = copy.deepcopy(net.config)
    text = wide.get_text_config(decoder=True)
    for name in ("sliding_window", "attention_window_size", "attention_chunk_size"):
        if getattr(text, name, None):
            setattr(text, name, tokens)
    return drawn(lambda: type(net)._from_config(wide, dtype=torch.float32))
