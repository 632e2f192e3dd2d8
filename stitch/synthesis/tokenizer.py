"""A tokenizer for a given vocabulary. Every token is a literal string; where several match, the longest is taken."""

import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from stitch.errors import UsageError


def tokenizer_of(tokens: Sequence[str]) -> PreTrainedTokenizerFast:
    """`tokens[0]` is put before every text. Encoding a text that is not made of tokens is an error.

    Raises: UsageError when two tokens are equal.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

    if len(set(tokens)) < len(tokens):
        twice = sorted({token for token in tokens if tokens.count(token) > 1})
        raise UsageError(f"tokens must differ; got {', '.join(twice)} twice. Rename states or symbols.")
    first = tokens[0]
    core = Tokenizer(models.WordLevel({token: number for number, token in enumerate(tokens)}))
    longest = sorted(tokens, key=len, reverse=True)
    core.pre_tokenizer = pre_tokenizers.Split(Regex("|".join(re.escape(token) for token in longest)), "isolated")
    core.decoder = decoders.Fuse()
    core.post_processor = processors.TemplateProcessing(single=f"{first} $A", special_tokens=[(first, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token=first, pad_token=first, padding_side="right")
