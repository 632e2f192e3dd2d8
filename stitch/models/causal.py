"""Whether a model is causal: what it predicts from some tokens must not depend on those after them."""

import torch
from transformers import PreTrainedModel

from stitch.errors import UsageError

TOKENS = 6


@torch.no_grad()
def require_causal(net: PreTrainedModel, name: str) -> None:
    """Raises UsageError where another last token changes the logits before it, by more than rounding does.

    Classes for masked language models, such as BERT's, attend to both sides unless their config says `is_decoder`.
    """
    ids = torch.arange(2, 2 + TOKENS, device=net.device)[None]
    other = ids.clone()
    other[0, -1] = 2
    one, two = (net(input_ids=text, use_cache=False).logits[0, :-1].float() for text in (ids, other))
    if (one - two).abs().max() > torch.finfo(net.dtype).eps ** 0.5 * one.abs().max():
        raise UsageError(
            f"the model must be causal; {name} ({net.config.model_type}) sees the whole text: choose one that generates."
        )
