"""A model's family, shape and vocabulary, from its config and tokenizer. Weights are not loaded."""

from stitch.modeling.modeling_composite import StitchConfig, longest_context, parts_of
from stitch.models.anatomy import anatomy_of, blocks_before_last_part, find_anatomy
from stitch.models.flops import block_parameters
from stitch.models.loading import of_transformers, register_composites
from stitch.models.sources import resolve
from stitch.models.text_part import text_part


def describe(source: str) -> dict:
    """Family, shape, sites and vocabulary of the model named `source`, as plain values in display order.

    For a composite, `sites` are those where it may be cut; width, heads and parameters per block are those of its last part.
    Of a model, parameters per block are those of its first block. Raises: the errors of `resolve`; UsageError for a model that is
    no decoder.
    """
    from transformers import AutoConfig, AutoTokenizer

    found = resolve(source)
    register_composites()
    with of_transformers(found.name):
        config = text_part(found.folder) or AutoConfig.from_pretrained(found.folder, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(found.folder, trust_remote_code=False)
    parts = [*parts_of(config)]
    depth = config.get_text_config(decoder=True).num_hidden_layers
    last = parts[-1].get_text_config(decoder=True)
    return {
        "name": found.name,
        "family": _family(config),
        "blocks": depth,
        "sites": f"{blocks_before_last_part(config)}..{depth} (resid_pre.N is the residual stream entering block N)",
        "width": last.hidden_size,
        "attention heads": getattr(last, "num_attention_heads", None),
        "key-value heads": getattr(last, "num_key_value_heads", None) or getattr(last, "num_attention_heads", None),
        "parameters per block": block_parameters(config, depth - 1 if len(parts) > 1 else 0) if depth else 0,
        "vocabulary": last.vocab_size,
        "longest context": min((limit for part in parts if (limit := longest_context(part))), default=None),
        "tied embeddings": bool(config.tie_word_embeddings),
        "tokenizer entries": len(tokenizer),
        "revision": found.revision,
    }


def _family(config) -> str:
    """The family's name, or the type in the config where blocks are found by looking. Raises: UsageError for no decoder."""
    if isinstance(config, StitchConfig):
        return anatomy_of(config).family
    found = find_anatomy(config.model_type, config.architectures or [], bool(config.is_encoder_decoder))
    return config.model_type if found is None else found.family
