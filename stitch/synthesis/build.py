"""A blueprint as a stock GPT-2 or Llama with its usual norms, positions and activation functions.

Norms       The factor of every norm is measured on the blueprint's specimens and folded into the weights that read its output. A
            channel that holds minus the sum of all others keeps LayerNorm's mean at 0.
Positions   GPT-2: binary codes (±1) of every position and of every head's targets, each with its negation. Llama: weights of RoPE
            planes by linear programming. The key of the first token is moved to a plane that hardly rotates; its score lies
            between those of the target and of other tokens, so that it is attended to where there is no target.
Contents    Llama: in the planes that rotate least.
ReLU        Llama: SiLU of a steep gate with a constant up projection. GPT-2: a steep GELU.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedConfig

from stitch.errors import UsageError
from stitch.files.specification import shown
from stitch.models.anatomy import ANATOMIES
from stitch.models.model import Model
from stitch.synthesis.blueprint import Blueprint
from stitch.synthesis.layout import Heads, Layout, layout_of
from stitch.synthesis.rope_heads import HEAD, THETA
from stitch.synthesis.tokenizer import tokenizer_of
from stitch.synthesis.write import write

ARCHITECTURES = ("gpt2", "llama")


def build(blueprint: Blueprint, arch: str, *, tokenizer: Any = None) -> Model:
    """The model in fp32. Its tokenizer has the blueprint's tokens unless another one is given.

    Raises: UsageError when the architecture cannot implement the blueprint.
    """
    check_architecture(arch)
    if blueprint.positions is not None and arch != "gpt2":
        raise UsageError(f"arch must be gpt2 for this circuit, which needs learned positions; got {arch}.")
    layout = layout_of(blueprint, arch)
    net = _blank(_config(blueprint, arch, layout))
    tokenizer = tokenizer or tokenizer_of(blueprint.tokens)
    model = Model("synthesis", net.eval(), tokenizer, ANATOMIES[arch], Path("synthesis"))
    write(model, blueprint, layout)
    return model


def check_architecture(arch: str) -> None:
    if arch not in ARCHITECTURES:
        raise UsageError(f"arch must be one of {', '.join(ARCHITECTURES)}; got {shown(arch)}.")


def heads_of(blueprint: Blueprint, arch: str) -> list[Heads]:
    """The heads of every block, as numbered in the model that `build` makes."""
    return layout_of(blueprint, arch).heads


def _config(blueprint: Blueprint, arch: str, layout: Layout) -> PreTrainedConfig:
    common: dict[str, Any] = dict(
        vocab_size=len(blueprint.tokens),
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=None,
        tie_word_embeddings=False,
        dtype="float32",
    )
    if arch == "gpt2":
        return GPT2Config(
            n_embd=layout.width,
            n_head=layout.heads_per_block,
            n_layer=len(blueprint.blocks),
            n_inner=layout.neurons,
            n_positions=blueprint.length,
            layer_norm_epsilon=1e-6,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            resid_pdrop=0.0,
            **common,
        )
    return LlamaConfig(
        hidden_size=layout.width,
        num_attention_heads=layout.heads_per_block,
        num_key_value_heads=layout.heads_per_block,
        head_dim=HEAD,
        num_hidden_layers=len(blueprint.blocks),
        intermediate_size=layout.neurons,
        max_position_embeddings=blueprint.length,
        attention_bias=True,
        mlp_bias=True,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        rms_norm_eps=1e-6,
        **common,
    )


def _blank(config: PreTrainedConfig) -> Any:
    """A network whose norms have a gain of 1 and whose other parameters are 0; buffers are the architecture's."""
    with torch.device("meta"):
        shapes = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    state = {
        name: torch.ones(value.shape) if _is_gain(name) else torch.zeros(value.shape)
        for name, value in shapes.state_dict().items()
    }
    net = type(shapes)(config)
    net.load_state_dict(state)
    return net


def _is_gain(name: str) -> bool:
    return name.endswith(("norm.weight", "layernorm.weight", "ln_1.weight", "ln_2.weight", "ln_f.weight"))
