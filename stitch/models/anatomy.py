"""Module paths per model family: embedding, blocks, final norm, head, attention and MLP."""

import copy
from dataclasses import dataclass, replace

from transformers import PreTrainedConfig

from stitch.errors import UsageError
from stitch.modeling.modeling_composite import StitchConfig
from stitch.modeling.modeling_recurrent import RecurrentConfig


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """Dotted paths of a decoder's modules.

    `body` and `head` start at the causal model; `attention`, `heads_out`, `mlp`, `down` and `mlp_out_norm` at a block; all
    others at the body. `heads_out` is the attention's output projection, which reads the heads; `down` is the MLP's output
    projection, which reads the neurons; `mlp_out_norm` is the norm between `down` and the residual stream (None where there
    is none). `positions` is the table of learned positions added to the embeddings, `embedding_dropout` the dropout before
    the first block; both are None in families without them.
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
    # Prefixes of tensor names that differ between model and checkpoint file, as (in the model, in the file).
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
    """The anatomy of the model that `config` describes. Raises: UsageError for a family without an entry in ANATOMIES."""
    if isinstance(config, StitchConfig):
        return _joined(anatomy_of(config.a_config), anatomy_of(config.b_config))
    anatomy = find_anatomy(config.model_type, config.architectures or [], bool(config.is_encoder_decoder))
    if getattr(config, "use_bidirectional_attention", False):
        raise UsageError(
            f"the model must be causal; got a {anatomy.family} with bidirectional attention, which sees the whole text: "
            "choose one that generates."
        )
    return anatomy


def _joined(a: Anatomy, b: Anatomy) -> Anatomy:
    """The anatomy of a composite: embedding and first blocks are A's, last blocks, final norm and head are B's.

    The table of positions is A's too. B's table is not part of a composite; the translation accounts for it.
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
    """The path through `parts`. Empty ones are skipped: the body of a composite is the model itself, with an empty path."""
    return ".".join(part for part in parts if part)


def blocks_before_last_part(config: PreTrainedConfig) -> int:
    """Blocks of a composite that run before its last seam; 0 for any other model."""
    return config.a_config.num_hidden_layers if isinstance(config, StitchConfig) else 0


def find_anatomy(model_type: str, architectures: list[str], has_encoder: bool) -> Anatomy:
    """The entry of ANATOMIES for `model_type`. Raises: UsageError that says why there is none and what to do."""
    if model_type in ANATOMIES:
        return ANATOMIES[model_type]
    known = ", ".join(sorted(ANATOMIES))
    got = f"{model_type} ({', '.join(architectures)})" if architectures else model_type
    if model_type == RecurrentConfig.model_type:
        raise UsageError(
            "a recurrent model cannot be a part or be converted again, because it keeps no keys: stitch or convert the "
            "original model, then make the result recurrent (`layers` restricts that to some blocks)."
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
        f"the family must be one of {known}; got {got}: to add it, write one entry in ANATOMIES of "
        "stitch/models/anatomy.py with the paths of its embedding, blocks, final norm and head."
    )


def truncated(config: PreTrainedConfig, start: int, stop: int) -> PreTrainedConfig:
    """A copy of `config` for a model of blocks start..stop−1 only, with the layer types of these blocks.

    A composite keeps all blocks before its last seam: `start` must be 0 and `stop` at or after that seam.
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
