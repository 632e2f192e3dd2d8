"""Language models by anatomy: where a family keeps its parts, as data. A new family is one entry in `ANATOMIES`."""

import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from stitch.errors import StitchError, UsageError
from stitch.modeling_composite import sliding_windows
from stitch.shards import stored_tensors


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """Dotted paths of a decoder's parts: `body` and `head` from the causal model, `attention`, `mlp`, `down` and
    `mlp_out_norm` from a block, all others from the body.

    `down` is the projection that ends the MLP and reads its neurons, `mlp_out_norm` the norm between it and the residual
    stream (None where the MLP writes to the stream directly). `positions` is the table of learned positions that the
    body adds to its embeddings, `embedding_dropout` the dropout before its first block; both are None where a family
    has none.
    """

    family: str
    body: str = "model"
    head: str = "lm_head"
    embedding: str = "embed_tokens"
    positions: str | None = None
    embedding_dropout: str | None = None
    blocks: str = "layers"
    final_norm: str = "norm"
    attention: str = "self_attn"
    mlp: str = "mlp"
    down: str = "mlp.down_proj"
    mlp_out_norm: str | None = None
    # Names that checkpoint files use instead of the model's own, as (start in the model, start in the file).
    stored_as: tuple[tuple[str, str], ...] = ()


ANATOMIES: dict[str, Anatomy] = {
    "gpt2": Anatomy(
        family="GPT-2",
        body="transformer",
        embedding="wte",
        positions="wpe",
        embedding_dropout="drop",
        blocks="h",
        final_norm="ln_f",
        attention="attn",
        down="mlp.c_proj",
        stored_as=(("transformer.", ""),),
    ),
    "llama": Anatomy(family="Llama"),
    "mistral": Anatomy(family="Mistral"),
    "qwen2": Anatomy(family="Qwen2"),
    "qwen3": Anatomy(family="Qwen3"),
    "gemma2": Anatomy(family="Gemma 2", mlp_out_norm="post_feedforward_layernorm"),
    "gemma3_text": Anatomy(family="Gemma 3 (text)", mlp_out_norm="post_feedforward_layernorm"),
    "gpt_neox": Anatomy(
        family="GPT-NeoX",
        body="gpt_neox",
        embedding="embed_in",
        embedding_dropout="emb_dropout",
        final_norm="final_layer_norm",
        attention="attention",
        down="mlp.dense_4h_to_h",
        stored_as=(("lm_head.", "embed_out."),),
    ),
    "phi": Anatomy(family="Phi", embedding_dropout="embed_dropout", final_norm="final_layernorm", down="mlp.fc2"),
    "olmo2": Anatomy(family="OLMo 2", mlp_out_norm="post_feedforward_layernorm"),
}


def anatomy_of(config: PreTrainedConfig) -> Anatomy:
    """The anatomy of the model that `config` describes. Raises UsageError for a family that has none here."""
    anatomy = _find(config.model_type, config.architectures or [], bool(config.is_encoder_decoder))
    if getattr(config, "use_bidirectional_attention", False):
        raise UsageError(
            f"the model must be causal; got a {anatomy.family} that sees the whole text: choose one that generates."
        )
    return anatomy


def _find(model_type: str, architectures: list[str], has_encoder: bool) -> Anatomy:
    if model_type in ANATOMIES:
        return ANATOMIES[model_type]
    known = ", ".join(sorted(ANATOMIES))
    got = f"{model_type} ({', '.join(architectures)})" if architectures else model_type
    if model_type == "gemma3":
        raise UsageError(
            "a Gemma 3 model must be text only (gemma3_text); got the multimodal gemma3: save its language model "
            "with its text_config as a checkpoint of its own."
        )
    if has_encoder or (architectures and not any("CausalLM" in name for name in architectures)):
        raise UsageError(
            f"the model must be a decoder that predicts the next token; got {got}, which has an encoder or no such "
            f"head: choose a causal model of one of {known}."
        )
    raise UsageError(
        f"the family must be one of {known}; got {got}: to add it, write one entry in ANATOMIES of stitch/models.py "
        "that says where its embedding, blocks, final norm and head are."
    )


@dataclass(frozen=True)
class Model:
    """A causal language model with its parts in reach. `folder` holds its safetensors, config and tokenizer files."""

    name: str
    net: PreTrainedModel
    tokenizer: Any
    anatomy: Anatomy
    folder: Path

    @property
    def config(self) -> PreTrainedConfig:
        return self.net.config

    @property
    def width(self) -> int:
        return self.config.hidden_size

    @property
    def depth(self) -> int:
        """Number of blocks; sites are 0..depth."""
        return self.config.num_hidden_layers

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.weight.dtype

    @cached_property
    def body(self) -> nn.Module:
        return self.net.get_submodule(self.anatomy.body)

    @cached_property
    def embedding(self) -> nn.Embedding:
        """Token embedding. Its output may be scaled (Gemma), its `weight` is not."""
        return self.body.get_submodule(self.anatomy.embedding)  # pyright: ignore[reportReturnType]

    @cached_property
    def blocks(self) -> nn.ModuleList:
        return self.body.get_submodule(self.anatomy.blocks)  # pyright: ignore[reportReturnType]

    def down(self, block: int) -> nn.Module:
        """The projection that ends the MLP of `block`: a Linear, or GPT-2's Conv1D, whose weight is transposed."""
        return self.blocks[block].get_submodule(self.anatomy.down)

    @cached_property
    def final_norm(self) -> nn.Module:
        return self.body.get_submodule(self.anatomy.final_norm)

    @cached_property
    def head(self) -> nn.Module:
        return self.net.get_submodule(self.anatomy.head)

    @property
    def bos(self) -> int | None:
        """The token every text starts with: BOS, or EOS in families without one."""
        bos = self.tokenizer.bos_token_id
        return bos if bos is not None else self.tokenizer.eos_token_id

    def check_site(self, site: int) -> int:
        """`site` itself. Raises UsageError unless it is in 0..depth."""
        if not 0 <= site <= self.depth:
            raise UsageError(
                f"layer must be in 0..{self.depth} for {self.name}; got {site}. "
                f"List layers with `stitch inspect {self.name}`."
            )
        return site


def load(
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    trust_remote_code: bool = False,
    name: str | None = None,
) -> Model:
    """The model in `folder`, in `dtype` (None: as stored), in evaluation mode; `name` is how messages call it.

    Raises UsageError for a family without anatomy or quantised weights, StitchError for missing or damaged files.
    """
    name = name or folder.name
    if not (folder / "config.json").is_file():
        raise StitchError(f"a model folder must hold config.json; {folder} does not: check the path.")
    try:
        config = PreTrainedConfig.get_config_dict(folder)[0]
    except (OSError, ValueError) as error:
        raise StitchError(
            f"config.json of {name} must be readable; got {_one_line(error)}: download it again."
        ) from error
    anatomy = _find(
        config.get("model_type", "unknown"), config.get("architectures") or [], bool(config.get("is_encoder_decoder"))
    )
    if (quantised := config.get("quantization_config")) is not None:
        method = quantised.get("quant_method", "unknown")
        raise UsageError(
            f"weights must be plain floats; {name} is quantised ({method}): give the unquantised checkpoint or a GGUF."
        )
    stored_tensors(folder)  # headers only: says in one line what is missing, damaged or pickled
    transformers_logging.disable_progress_bar()  # progress is told through callbacks
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype or "auto",
            trust_remote_code=trust_remote_code,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise StitchError(f"{name} must load as a causal language model; got {_one_line(error)}") from error
    net, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise StitchError(f"the weights of {name} are incomplete: {len(missing)} tensors missing, {missing[0]} first.")
    return Model(name, net.to(device).eval(), tokenizer, anatomy, folder)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def block_parameters(config: PreTrainedConfig, block: int) -> int:
    """Number of weights in block `block`, counted on a model without memory."""
    anatomy = anatomy_of(config)
    with torch.device("meta"):
        body = AutoModel.from_config(truncated(config, block, block + 1))
    return sum(parameter.numel() for parameter in body.get_submodule(anatomy.blocks).parameters())


def block_flops(config: PreTrainedConfig, block: int, context: int) -> float:
    """Floating-point operations per token of one block: 2 per weight, 4 · heads · head width per key looked at.

    The number of keys is the mean over a causal window of `context` tokens, shorter where the block's attention slides.
    """
    heads = config.num_attention_heads
    head_width = getattr(config, "head_dim", None) or config.hidden_size // heads
    reach = min(sliding_windows(config)[block] or context, context)
    keys = (reach * (reach + 1) / 2 + (context - reach) * reach) / context
    return 2.0 * block_parameters(config, block) + 4.0 * heads * head_width * keys


def truncated(config: PreTrainedConfig, start: int, stop: int) -> PreTrainedConfig:
    """A copy of `config` for blocks start..stop−1 alone, whose layer types are those of these blocks."""
    part = copy.deepcopy(config)
    if getattr(part, "layer_types", None) is not None:
        part.layer_types = list(part.layer_types[start:stop])
    part.num_hidden_layers = stop - start
    return part
