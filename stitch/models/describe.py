"""What a model is made of, from its config and the headers of its weights; the weights stay on disk."""

from stitch.modeling.modeling_composite import parts_of
from stitch.models.anatomy import blocks_before_last_part
from stitch.models.flops import block_parameters
from stitch.models.loading import register_composites
from stitch.models.sources import resolve


def describe(source: str) -> dict:
    """Family, shape, sites and vocabulary of the model called `source`, as plain values in the order to show them.

    Of a composite: sites are those it may be cut at, width and heads those of its last part, weights those of its first block.
    """
    from transformers import AutoConfig, AutoTokenizer

    from stitch.models.anatomy import anatomy_of

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
        "sites": f"{blocks_before_last_part(config)}..{depth} (resid_pre.N is the stream entering block N)",
        "width": last.hidden_size,
        "attention heads": last.num_attention_heads,
        "key-value heads": getattr(last, "num_key_value_heads", None) or last.num_attention_heads,
        "parameters per block": block_parameters(config, 0) if depth else 0,
        "vocabulary": config.vocab_size,
        "longest context": min(part.max_position_embeddings for part in parts),
        "tied embeddings": bool(config.tie_word_embeddings),
        "tokenizer entries": len(tokenizer),
        "revision": found.revision,
    }
