"""Builds the model with merged heads: of the donor's family, or GPTBigCode for a GPT-2 with one key head."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config, GPTBigCodeConfig, PreTrainedConfig, PreTrainedModel

from stitch.internals.weights import Attention
from stitch.modeling.modeling_composite import StitchConfig, StitchForCausalLM
from stitch.models.anatomy import anatomy_of
from stitch.models.model import Model
from stitch.translation.module import copy_translations

SAME = (
    "vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner", "resid_pdrop", "embd_pdrop", "attn_pdrop",
    "layer_norm_epsilon", "bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "scale_attn_weights",
)  # fmt: skip


def with_heads(donor: Model, attentions: list[Attention]) -> PreTrainedModel:
    """A new model with these attentions, in block order. All other tensors are shared with the donor."""
    config = _with_key_heads(donor.config, attentions)
    config.dtype = donor.dtype
    make: Any = StitchForCausalLM._from_config if isinstance(config, StitchConfig) else AutoModelForCausalLM.from_config
    net = make(config, dtype=donor.dtype).to(donor.device).eval()
    net.generation_config = copy.deepcopy(donor.net.generation_config)
    copy_translations(donor.net, net)
    _share(donor.net, net)
    new = Model(donor.name, net, donor.tokenizer, anatomy_of(net.config), donor.folder)
    for block, attention in enumerate(attentions):
        part, own = new.in_part(block)
        _write(part.blocks[own].get_submodule(part.anatomy.attention), attention)
    return net


def _with_key_heads(config: PreTrainedConfig, attentions: list[Attention]) -> PreTrainedConfig:
    """The config with the numbers of key heads that `attentions`, one for each of its blocks, have."""
    if isinstance(config, StitchConfig):
        config = copy.deepcopy(config)
        before = config.site_a
        config.a_config = _with_key_heads(config.a_config, attentions[:before])
        config.b_config = _with_key_heads(config.b_config, attentions[before:])
        return config
    if not attentions or config.model_type == "gpt_bigcode":
        return copy.deepcopy(config)
    if isinstance(config, GPT2Config):
        return _big_code(config)
    config = copy.deepcopy(config)
    _, config.num_key_value_heads, config.head_dim = attentions[
        0
    ].k.shape  # by default head_dim is derived from the number of heads
    return config


def _big_code(old: GPT2Config) -> GPTBigCodeConfig:
    activation = "gelu_pytorch_tanh" if old.activation_function == "gelu_new" else old.activation_function
    return GPTBigCodeConfig(
        **{name: getattr(old, name) for name in SAME}, activation_function=activation, multi_query=True, dtype=old.dtype,
        attention_softmax_in_fp32=False, scale_attention_softmax_in_fp32=False,
    )  # fmt: skip


@torch.no_grad()
def _share(old: nn.Module, new: nn.Module) -> None:
    """Shares the memory of all parameters except those of attentions, as a report holds a dozen such models at once."""
    made: dict[Tensor, nn.Parameter] = {}  # so that what is tied in both stays tied
    for path, module in new.named_modules():
        if ".self_attn." in path or ".attn." in path:
            continue
        before = old.get_submodule(path)
        for name in list(module._parameters):
            if module._parameters[name] is None:
                continue
            value = before.get_parameter(name)
            # GPT-2 keeps its projections transposed (Conv1D).
            is_turned = value.ndim == 2 and isinstance(module, nn.Linear) and not isinstance(before, nn.Linear)
            if value not in made:
                # A Parameter of its own, so that what is frozen here is not frozen in the donor.
                made[value] = nn.Parameter(value.T.contiguous() if is_turned else value.detach())
            module._parameters[name] = made[value]


def _write(module: nn.Module, new: Attention) -> None:
    names = ("c_attn", "c_proj") if hasattr(module, "c_attn") else ("q_proj", "k_proj", "v_proj", "o_proj")
    reads = [(new.q, new.q_bias), (new.k, new.k_bias), (new.v, new.v_bias)]
    weights = [weight.flatten(1).T for weight, _ in reads]
    biases = [None if bias is None else bias.flatten() for _, bias in reads]
    if len(names) == 2:
        weights, biases = [torch.cat(weights)], [torch.cat([bias for bias in biases if bias is not None])]
    for name, weight, bias in zip(names[:-1], weights, biases, strict=True):
        _set(module.get_submodule(name), weight, bias)
    _set(module.get_submodule(names[-1]), new.o.flatten(0, 1).T, new.o_bias)
    for name, gain in (("q_norm", new.q_gain), ("k_norm", new.k_gain)):
        if gain is not None:
            _set(module.get_submodule(name), gain, None)


@torch.no_grad()
def _set(module: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    module.weight.copy_(weight)  # pyright: ignore[reportCallIssue]
    if bias is not None:
        module.bias.copy_(bias)  # pyright: ignore[reportCallIssue]
