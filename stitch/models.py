"""Language models by anatomy: where a family keeps its parts, as data. A new family is one entry in `ANATOMIES`.

A composite is a model like others, as long as it is the first of two: its blocks are those of its parts, its last part goes on
until it is cut.
"""

import copy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from stitch.errors import StitchError, UsageError
from stitch.modeling_composite import (
    StitchConfig,
    Stitched,
    StitchForCausalLM,
    TranslationModule,
    parts_of,
    sliding_windows,
)
from stitch.modeling_recurrent import RecurrentConfig, RecurrentForCausalLM
from stitch.shards import stored_tensors


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """Dotted paths of a decoder's parts: `body` and `head` from the causal model, `attention`, `heads_out`, `mlp`, `down` and
    `mlp_out_norm` from a block, all others from the body.

    `heads_out` is the projection that ends the attention and reads its heads, `down` the one that ends the MLP and reads
    its neurons, `mlp_out_norm` the norm between it and the residual stream (None where the MLP writes to the stream
    directly). `positions` is the table of learned positions that the body adds to its embeddings, `embedding_dropout`
    the dropout before its first block; both are None where a family has none.
    """

    family: str
    body: str = "model"
    head: str = "lm_head"
    embedding: str = "embed_tokens"
    positions: str | None = None
    embedding_dropout: str | None = None
    blocks: str = "layers"
    earlier_blocks: tuple[str, ...] = ()  # of a composite: those that run before `blocks`, part by part
    final_norm: str = "norm"
    attention: str = "self_attn"
    heads_out: str = "self_attn.o_proj"
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
        heads_out="attn.c_proj",
        down="mlp.c_proj",
        stored_as=(("transformer.", ""),),
    ),
    "gpt_bigcode": Anatomy(
        family="GPTBigCode",
        body="transformer",
        embedding="wte",
        positions="wpe",
        embedding_dropout="drop",
        blocks="h",
        final_norm="ln_f",
        attention="attn",
        heads_out="attn.c_proj",
        down="mlp.c_proj",
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
        heads_out="attention.dense",
        down="mlp.dense_4h_to_h",
        stored_as=(("lm_head.", "embed_out."),),
    ),
    "phi": Anatomy(
        family="Phi",
        embedding_dropout="embed_dropout",
        final_norm="final_layernorm",
        heads_out="self_attn.dense",
        down="mlp.fc2",
    ),
    "olmo2": Anatomy(family="OLMo 2", mlp_out_norm="post_feedforward_layernorm"),
}


def anatomy_of(config: PreTrainedConfig) -> Anatomy:
    """The anatomy of the model that `config` describes. Raises UsageError for a family that has none here."""
    if isinstance(config, StitchConfig):
        return _joined(anatomy_of(config.a_config), anatomy_of(config.b_config))
    anatomy = _find(config.model_type, config.architectures or [], bool(config.is_encoder_decoder))
    if getattr(config, "use_bidirectional_attention", False):
        raise UsageError(
            f"the model must be causal; got a {anatomy.family} that sees the whole text: choose one that generates."
        )
    return anatomy


def _joined(a: Anatomy, b: Anatomy) -> Anatomy:
    """The anatomy of a composite: it begins as A does and ends as B does.

    Its table of positions is A's: B's own has been left out, and what it says is in the translation.
    """
    return replace(
        b,
        family=f"{a.family} → {b.family}",
        body="",
        head=f"b.{b.head}",
        embedding=f"a.{a.embedding}",
        positions=f"a.{a.positions}" if a.positions else None,
        embedding_dropout=f"a.{a.embedding_dropout}" if a.embedding_dropout else None,
        blocks=dotted("b", b.body, b.blocks),
        earlier_blocks=(*(f"a.{path}" for path in a.earlier_blocks), f"a.{a.blocks}"),
        final_norm=dotted("b", b.body, b.final_norm),
        stored_as=(),
    )


def dotted(*parts: str) -> str:
    """The path through `parts`; the body of a composite is the whole, so its path is empty."""
    return ".".join(part for part in parts if part)


def blocks_before_last_part(config: PreTrainedConfig) -> int:
    """Blocks of a composite that run before its last seam; 0 for any other model."""
    return config.a_config.num_hidden_layers if isinstance(config, StitchConfig) else 0


def _find(model_type: str, architectures: list[str], has_encoder: bool) -> Anatomy:
    if model_type in ANATOMIES:
        return ANATOMIES[model_type]
    known = ", ".join(sorted(ANATOMIES))
    got = f"{model_type} ({', '.join(architectures)})" if architectures else model_type
    if model_type == RecurrentConfig.model_type:
        raise UsageError(
            "a recurrent model cannot be a part or be converted again: it keeps no keys; stitch or convert the stock model, "
            "then give the result its recurrent form (of some blocks alone with --layers)."
        )
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
        """Of the residual stream; in a composite that of its last part."""
        return self.width_at(self.depth)

    def width_at(self, site: int) -> int:
        """Of the residual stream entering block `site`: parts of a composite may differ."""
        config = self.config
        while isinstance(config, StitchConfig):
            early = config.a_config
            config = early if site < early.num_hidden_layers else config.b_config
        return config.hidden_size

    @property
    def longest(self) -> int:
        """Positions that all its parts take."""
        return min(part.max_position_embeddings for part in parts_of(self.config))

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
        lists: list[Any] = [
            self.body.get_submodule(path) for path in (*self.anatomy.earlier_blocks, self.anatomy.blocks)
        ]
        return lists[0] if len(lists) == 1 else nn.ModuleList([block for blocks in lists for block in blocks])

    @property
    def parts(self) -> list["Model"]:
        """The stock models that a composite is made of, in the order they run, sharing its modules; of any other model itself.

        All but the last have neither final norm nor head, all but the first no embedding.
        """
        return self._of_composite or [self]

    @cached_property
    def _of_composite(self) -> list["Model"]:
        """Empty for any other model, which would keep itself alive in a list of its own."""
        if not isinstance(self.net, Stitched):
            return []
        early = replace(self, net=self.net.a, anatomy=replace(anatomy_of(self.net.a.config), body=""))
        return [*early.parts, replace(self, net=self.net.b, anatomy=anatomy_of(self.net.b.config))]

    def in_part(self, block: int) -> tuple["Model", int]:
        """The part that `block` is in, and its number there."""
        for part in self.parts:
            if block < part.depth:
                return part, block
            block -= part.depth
        raise IndexError(block)

    @property
    def seams(self) -> list[tuple[int, TranslationModule]]:
        """Of a composite: its translations in the order they run, each after the block that it leads to."""
        found, net = [], self.net
        while isinstance(net, Stitched):
            found.insert(0, (net.a.config.num_hidden_layers, net.translation))
            net = net.a
        return found

    def down(self, block: int) -> nn.Module:
        """The projection that ends the MLP of `block`: a Linear, or GPT-2's Conv1D, whose weight is transposed."""
        part, own = self.in_part(block)
        return part.blocks[own].get_submodule(part.anatomy.down)

    def heads_out(self, block: int) -> nn.Module:
        """The projection that ends the attention of `block` and reads its heads side by side."""
        part, own = self.in_part(block)
        return part.blocks[own].get_submodule(part.anatomy.heads_out)

    def heads(self, block: int) -> int:
        """How many heads the attention of `block` has."""
        return self.in_part(block)[0].config.num_attention_heads

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
        """`site` itself. Raises UsageError unless it is in 0..depth, or of a composite between its last seam and depth."""
        least = blocks_before_last_part(self.config)
        if not least <= site <= self.depth:
            why = f" (a composite is cut after its last seam, which is at {least})" if least else ""
            raise UsageError(
                f"layer must be in {least}..{self.depth} for {self.name}{why}; got {site}. "
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
    is_composite = config.get("model_type") == StitchConfig.model_type
    if is_composite:
        register_composites()
    else:
        _find(
            config.get("model_type", "unknown"),
            config.get("architectures") or [],
            bool(config.get("is_encoder_decoder")),
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
    anatomy = anatomy_of(net.config) if is_composite else ANATOMIES[net.config.model_type]
    return Model(name, net.to(device).eval(), tokenizer, anatomy, folder)


def register_composites() -> None:
    """Lets transformers load composites, and recurrent models, with the classes at hand here: they need no remote code."""
    for config, net in ((StitchConfig, StitchForCausalLM), (RecurrentConfig, RecurrentForCausalLM)):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModelForCausalLM.register(config, net, exist_ok=True)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def block_parameters(config: PreTrainedConfig, block: int) -> int:
    """Number of weights in block `block`, counted on a model without memory."""
    if isinstance(config, StitchConfig):
        return block_parameters(*_in_its_part(config, block))
    anatomy = anatomy_of(config)
    with torch.device("meta"):
        body = AutoModel.from_config(truncated(config, block, block + 1))
    return sum(parameter.numel() for parameter in body.get_submodule(anatomy.blocks).parameters())


def block_flops(config: PreTrainedConfig, block: int, context: int) -> float:
    """Floating-point operations per token of one block: 2 per weight, 4 · heads · head width per key looked at.

    The number of keys is the mean over a causal window of `context` tokens, shorter where the block's attention slides.
    A composite's translation counts with the block that it leads to.
    """
    if isinstance(config, StitchConfig):
        part, own = _in_its_part(config, block)
        seam = 2.0 * _multiply_adds(config.translation) if part is config.b_config and own == 0 else 0.0
        return seam + block_flops(part, own, context)
    heads = config.num_attention_heads
    head_width = getattr(config, "head_dim", None) or config.hidden_size // heads
    reach = min(sliding_windows(config)[block] or context, context)
    keys = (reach * (reach + 1) / 2 + (context - reach) * reach) / context
    return 2.0 * block_parameters(config, block) + 4.0 * heads * head_width * keys


def _in_its_part(config: StitchConfig, block: int) -> tuple[PreTrainedConfig, int]:
    """The half of a composite that block `block` is in, and its number there."""
    early = config.a_config.num_hidden_layers
    return (config.a_config, block) if block < early else (config.b_config, block - early)


def _multiply_adds(translation: dict) -> int:
    """Those of a `TranslationModule` per token; see `Translation.multiply_adds`."""
    total = 0
    for term in translation["terms"]:
        read = term.get("features", term.get("width", 0))  # tables have neither
        total += 0 if term.get("identity") else read * translation["width"]
        total += term["width"] * term["features"] if term["kind"] == "codes" else 0
    return total


def truncated(config: PreTrainedConfig, start: int, stop: int) -> PreTrainedConfig:
    """A copy of `config` for blocks start..stop−1 alone, whose layer types are those of these blocks.

    A composite is cut in its last part and keeps its start.
    """
    if isinstance(config, StitchConfig):
        before = config.a_config.num_hidden_layers
        assert start == 0 and stop >= before, "a composite is cut after its last seam"
        late = truncated(config.b_config, 0, stop - before)
        kept = copy.deepcopy((config.a_config, config.seam, config.translation))
        return StitchConfig(kept[0], late, config.site_a, config.site_b, *kept[1:])
    part = copy.deepcopy(config)
    if getattr(part, "layer_types", None) is not None:
        part.layer_types = list(part.layer_types[start:stop])
    part.num_hidden_layers = stop - start
    return part
