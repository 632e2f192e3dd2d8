"""A model's family, shape and vocabulary, from its config and tokenizer. Weights are not loaded."""

from stitch.modeling.modeling_composite import longest_context, parts_of
from stitch.models.anatomy import anatomy_of, blocks_before_last_part
from stitch.models.flops import block_parameters
from stitch.models.loading import register_composites
from stitch.models.sources import resolve


def describe(source: str) -> dict:
    """Family, shape, sites and vocabulary of the model named `source`, as plain values in display order.

    For a composite, `sites` are those where it may be cut, width and heads are those of its last part, and the parameters per
    block those of its first block. Raises: the errors of `resolve`; UsageError for an unknown family.
    """
    from transformers import AutoConfig, AutoTokenizer

    found = resolve(source)
    register_composites()
    config = AutoConfig.from_pretrained(found.folder)
    anatomy = anatomy_of(config)
    tokenizer = AutoTokenizer.from_pretrained(found.folder)
    depth, parts = config.num_hidden_layers, [*parts_of(config)]
    last = parts[-1]
    return {
        "name": found.name,
        "family": anatomy.family,
        "blocks": depth,
        "sites": f"{blocks_before_last_part(config)}..{depth} (resid_pre.N is the residual stream entering block N)",
        "width": last.hidden_size,
        "attention heads": last.num_attention_heads,
        "key-value heads": getattr(last, "num_key_value_heads", None) or last.num_attention_heads,
        "parameters per block": block_parameters(config, 0) if depth else 0,
        "vocabulary": config.vocab_size,
        "longest context": min((limit for part in parts if (limit := longest_context(part))), default=None),
        "tied embeddings": bool(config.tie_word_embeddings),
        "tokenizer entries": len(tokenizer),
        "revision": found.revision,
    }
