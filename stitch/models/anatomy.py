"""Module paths per model family: embedding, blocks, final norm, head, attention and MLP."""

from dataclasses import dataclass, replace

import transformers
from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from stitch.errors import UsageError
from stitch.modeling.modeling_composite import StitchConfig
from stitch.modeling.modeling_recurrent import RecurrentConfig
from stitch.models.donor_code import is_foreign


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """Dotted paths of a decoder's modules.

    `body` and `head` start at the causal model; `attention`, `heads_out`, `mlp`, `down` and `mlp_out_norm` at a block; all
    others at the body. `heads_out` is the attention's output projection, which reads the heads; `down` is the MLP's output
    projection, which reads the neurons; `mlp_out_norm` is the norm between `down` and the residual stream (None where there
    is none). `positions` is the table of learned positions added to the embeddings, `embedding_dropout` the dropout before
    the first block; both are None in families without them. A path is "" where it is not known; what a user leaves out is
    found by looking when the model is loaded, but for attention and MLP (`given_anatomy.py`).
    """

    family: str
    body: str = ""
    head: str = ""
    embedding: str = ""
    positions: str | None = None
    embedding_dropout: str | None = None
    blocks: str = ""
    final_norm: str = ""
    attention: str = ""
    heads_out: str = ""
    mlp: str = ""
    down: str = ""
    mlp_out_norm: str | None = None
    # Prefixes of tensor names that differ between model and checkpoint file, as (in the model, in the file).
    stored_as: tuple[tuple[str, str], ...] = ()
    # Whether this project's tests try the family: it is exact at every site, and its files hold the tensors of the loaded model.
    tested: bool = False

    @property
    def path_of_blocks(self) -> str:
        """The path of the list of blocks, from the causal model."""
        return dotted(self.body, self.blocks)


LLAMA = Anatomy(
    family="Llama",
    body="model",
    head="lm_head",
    embedding="embed_tokens",
    blocks="layers",
    final_norm="norm",
    attention="self_attn",
    heads_out="self_attn.o_proj",
    mlp="mlp",
    down="mlp.down_proj",
)
_TESTED = {
    "gpt2": replace(
        LLAMA,
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
    "gpt_bigcode": replace(
        LLAMA,
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
    "llama": LLAMA,
    "mistral": replace(LLAMA, family="Mistral"),
    "qwen2": replace(LLAMA, family="Qwen2"),
    "qwen3": replace(LLAMA, family="Qwen3"),
    "gemma2": replace(LLAMA, family="Gemma 2", mlp_out_norm="post_feedforward_layernorm"),
    "gemma3_text": replace(LLAMA, family="Gemma 3 (text)", mlp_out_norm="post_feedforward_layernorm"),
    "gpt_neox": replace(
        LLAMA,
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
    "phi": replace(
        LLAMA,
        family="Phi",
        embedding_dropout="embed_dropout",
        final_norm="final_layernorm",
        heads_out="self_attn.dense",
        down="mlp.fc2",
    ),
    "olmo2": replace(LLAMA, family="OLMo 2", mlp_out_norm="post_feedforward_layernorm"),
}
ANATOMIES: dict[str, Anatomy] = {family: replace(anatomy, tested=True) for family, anatomy in _TESTED.items()}


def register_anatomy(model_type: str, anatomy: Anatomy) -> None:
    """Says where models whose config has this `model_type` keep their modules, for the rest of this process.

    Stitching finds the blocks of a decoder by itself. An anatomy is needed for commands that read attention or MLPs, such as
    `circuit`, and where several lists of modules may be the blocks. Names that are left out are found by looking, and those
    that are given are compared with what is found, when a model is loaded.

    A GPT-2 under a name of its own, whose attention and MLP commands may read:

    >>> import stitch
    >>> mine = stitch.Anatomy(
    ...     family="GPT-2 of ours", attention="attn", heads_out="attn.c_proj", mlp="mlp", down="mlp.c_proj"
    ... )
    >>> stitch.register_anatomy("gpt2-of-ours", mine)
    """
    ANATOMIES[model_type] = replace(anatomy, tested=False)


def entry_of(config: PreTrainedConfig) -> Anatomy | None:
    """The entry of ANATOMIES for a stock model. Code of others under the name of a family may be another model: it has none but
    what a user has registered."""
    found = ANATOMIES.get(config.model_type)
    return None if found and found.tested and is_foreign(type(config)) else found


def anatomy_of(config: PreTrainedConfig, flow: dict | None = None) -> Anatomy:
    """The anatomy of the model that `config` describes: that in ANATOMIES, or of a family without tests what `flow` says.

    Raises: UsageError for a family without an entry in ANATOMIES where no flow is given, and for a model that is no decoder.
    """
    if isinstance(config, StitchConfig):
        return _joined(anatomy_of(config.a_config, config.a_flow), anatomy_of(config.b_config, config.b_flow))
    find_anatomy(config.model_type, config.architectures or [], bool(config.is_encoder_decoder))
    anatomy = entry_of(config)
    if flow is not None and not (anatomy and anatomy.tested):
        anatomy = _from_flow(anatomy or Anatomy(family=config.model_type), flow)
    if anatomy is None:
        raise UsageError(
            f"the blocks of a {config.model_type} model are found by running it, as it is not one of "
            f"{', '.join(sorted(ANATOMIES))}: load its weights."
        )
    if getattr(config, "use_bidirectional_attention", False) in (True, "all"):  # "vision": of images alone
        raise UsageError(
            f"the model must be causal; got a {anatomy.family} with bidirectional attention, which sees the whole text: "
            "choose one that generates."
        )
    return anatomy


def _from_flow(given: Anatomy, flow: dict) -> Anatomy:
    """`given` with the places that `flow` knows. Without an entry attention and MLP are not known, so commands that read them
    refuse the family.

    Loading also finds `down` in some families (`stitch/models/writes.py`).
    """

    def inside(path: str) -> str:
        return path.removeprefix(f"{flow['body']}.") if flow["body"] else path

    def moved(path: str | None) -> str | None:
        return path and inside(dotted(given.body or flow["body"], path))

    return replace(
        given, body=flow["body"], head=flow["head"], embedding=inside(flow["input"]), blocks=inside(flow["blocks"]),
        final_norm=inside(flow["exit"] or ""), positions=moved(given.positions),
        embedding_dropout=moved(given.embedding_dropout),
    )  # fmt: skip


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
        final_norm=dotted("b", b.body, b.final_norm),
        stored_as=(),
    )


def dotted(*parts: str) -> str:
    """The path through `parts`. Empty ones are skipped: the body of a composite is the model itself, with an empty path."""
    return ".".join(part for part in parts if part)


def blocks_before_last_part(config: PreTrainedConfig) -> int:
    """Blocks of a composite that run before its last seam; 0 for any other model."""
    return config.site_a if isinstance(config, StitchConfig) else 0


def find_anatomy(model_type: str, architectures: list[str], has_encoder: bool) -> Anatomy | None:
    """The entry of ANATOMIES for `model_type`; None for another decoder, whose blocks are found by running it.

    Raises: UsageError where the model is no decoder, or one that cannot be cut.
    """
    if model_type == RecurrentConfig.model_type:
        raise UsageError(
            "a recurrent model cannot be a part or be converted again, because it keeps no keys: stitch or convert the "
            "original model, then make the result recurrent (`layers` restricts that to some blocks)."
        )
    known = ANATOMIES.get(model_type)
    if why := _no_decoder(model_type, architectures, has_encoder, known is not None):
        got = f"{model_type} ({', '.join(architectures)})" if architectures else model_type
        raise UsageError(
            f"the model must be a decoder that predicts the next token; got {got}, {why}: choose a causal model."
        )
    return known


def _no_decoder(model_type: str, architectures: list[str], has_encoder: bool, known: bool) -> str | None:
    """Why a model is no decoder that predicts the next token, from what its config says; None where it may be one.

    What classes outside transformers do is not in their names. A base model of a known family may have a tied head.
    """
    if has_encoder:
        return "an encoder-decoder, whose decoder needs what its encoder returns"
    causal = {MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)}  # of a model of text and images it may have any name
    stock = [name for name in architectures if hasattr(transformers, name) and not (known and "For" not in name)]
    if not stock or any("CausalLM" in name or "LMHead" in name or name in causal for name in stock):
        return None
    if any(name.endswith("ForConditionalGeneration") for name in stock):
        return "whose text part is no causal model of transformers"
    return "which has no head for that"
