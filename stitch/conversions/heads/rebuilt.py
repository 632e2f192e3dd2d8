"""The stock model that holds merged heads: the donor's own family, or GPTBigCode, a GPT-2 with one key head."""

import copy

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPTBigCodeConfig, PreTrainedModel

from stitch.circuits.weights import Attention
from stitch.models import Model


def with_heads(donor: Model, attentions: list[Attention]) -> PreTrainedModel:
    """A new model with these attentions, block by block; everything else has the donor's values, in its dtype and device."""
    groups = attentions[0].k.shape[1]
    if donor.config.model_type == "gpt2":
        return _big_code(donor, attentions)
    config = copy.deepcopy(donor.config)
    config.num_key_value_heads = groups
    config.head_dim = attentions[0].q.shape[2]  # where it was the width divided by the heads, too
    net = _empty(donor, config)
    _copy(donor.net, net, lambda name, value: value)
    for block, new in enumerate(attentions):
        module = net.get_submodule(f"{donor.anatomy.body}.{donor.anatomy.blocks}.{block}.{donor.anatomy.attention}")
        for name, weight, bias in (
            ("q_proj", new.q, new.q_bias),
            ("k_proj", new.k, new.k_bias),
            ("v_proj", new.v, new.v_bias),
        ):
            _set(module.get_submodule(name), weight.flatten(1).T, None if bias is None else bias.flatten())
        _set(module.get_submodule("o_proj"), new.o.flatten(0, 1).T, new.o_bias)
    return net


def _big_code(donor: Model, attentions: list[Attention]) -> PreTrainedModel:
    old = donor.config
    same = (
        "vocab_size",
        "n_positions",
        "n_embd",
        "n_layer",
        "n_head",
        "n_inner",
        "resid_pdrop",
        "embd_pdrop",
        "attn_pdrop",
    )
    same += (
        "layer_norm_epsilon",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "tie_word_embeddings",
        "scale_attn_weights",
    )
    activation = "gelu_pytorch_tanh" if old.activation_function == "gelu_new" else old.activation_function
    config = GPTBigCodeConfig(
        **{name: getattr(old, name) for name in same}, activation_function=activation, multi_query=True,
        attention_softmax_in_fp32=False, scale_attention_softmax_in_fp32=False,
    )  # fmt: skip
    net = _empty(donor, config)
    # GPT-2 keeps its projections transposed (Conv1D).
    _copy(
        donor.net, net, lambda name, value: value.T if name.endswith((".c_fc.weight", "mlp.c_proj.weight")) else value
    )
    for block, new in enumerate(attentions):
        assert new.q_bias is not None and new.k_bias is not None and new.v_bias is not None
        reads = torch.cat([part.flatten(1) for part in (new.q, new.k, new.v)], 1).T
        biases = torch.cat([part.flatten() for part in (new.q_bias, new.k_bias, new.v_bias)])
        attention = net.get_submodule(f"transformer.h.{block}.attn")
        _set(attention.get_submodule("c_attn"), reads, biases)
        _set(attention.get_submodule("c_proj"), new.o.flatten(0, 1).T, new.o_bias)
    return net


def _empty(donor: Model, config) -> PreTrainedModel:
    config.dtype = donor.dtype
    net = AutoModelForCausalLM.from_config(config, dtype=donor.dtype).to(donor.device).eval()
    net.generation_config = copy.deepcopy(donor.net.generation_config)
    return net


@torch.no_grad()
def _copy(old: nn.Module, new: nn.Module, changed) -> None:
    """All but the attentions, which differ in shape."""
    values = dict(old.named_parameters())
    for name, parameter in new.named_parameters():
        if ".self_attn." not in name and ".attn." not in name:
            parameter.copy_(changed(name, values[name]))


@torch.no_grad()
def _set(module: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    module.weight.copy_(weight)  # pyright: ignore[reportCallIssue]
    if bias is not None:
        module.bias.copy_(bias)  # pyright: ignore[reportCallIssue]
