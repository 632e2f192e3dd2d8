"""What a model is made of, from its config and the headers of its weights; the weights stay on disk."""

from stitch.models import block_parameters
from stitch.sources import resolve


def describe(source: str) -> dict:
    """Family, shape, sites and vocabulary of the model called `source`, as plain values in the order to show them."""
    from transformers import AutoConfig, AutoTokenizer

    from stitch.models import anatomy_of

    found = resolve(source)
    config = AutoConfig.from_pretrained(found.folder)
    anatomy = anatomy_of(config)
    tokenizer = AutoTokenizer.from_pretrained(found.folder)
    depth = config.num_hidden_layers
    return {
        "name": found.name,
        "family": anatomy.family,
        "blocks": depth,
        "sites": f"0..{depth} (resid_pre.N is the stream entering block N)",
        "width": config.hidden_size,
        "attention heads": config.num_attention_heads,
        "key-value heads": getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        "parameters per block": block_parameters(config, 0) if depth else 0,
        "vocabulary": config.vocab_size,
        "longest context": config.max_position_embeddings,
        "tied embeddings": bool(config.tie_word_embeddings),
        "tokenizer entries": len(tokenizer),
        "revision": found.revision,
    }
