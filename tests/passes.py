"""Forward passes that must agree: padded rows, in chunks, token by token."""

import torch
from torch import Tensor
from transformers import DynamicCache

import tiny
from stitch.modeling.modeling_recurrent import RecurrentCache, RecurrentForCausalLM


def left_padded(lengths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Token ids and mask. Row r holds `lengths[r]` tokens, starting with BOS, after its padding."""
    ids = torch.full((len(lengths), max(lengths)), tiny.PAD)
    for row, length in enumerate(lengths):
        ids[row, -length:] = tiny.ids(1, length, seed=row)[0]
    return ids, (ids != tiny.PAD).long()


def in_chunks(net, ids: Tensor, cuts: tuple[int, ...], cache=None) -> Tensor:
    cache = DynamicCache(config=net.config) if cache is None else cache
    parts = []
    for part in ids.tensor_split(cuts, dim=1):
        parts.append(net(part, past_key_values=cache, use_cache=True).logits)
    return torch.cat(parts, 1)


def by_token(net: RecurrentForCausalLM, ids: Tensor, **kwargs) -> tuple[Tensor, RecurrentCache]:
    return in_pieces(net, ids, 1, **kwargs)


@torch.no_grad()
def in_pieces(
    net: RecurrentForCausalLM, ids: Tensor, sizes: int | list[int], **kwargs
) -> tuple[Tensor, RecurrentCache]:
    cache, logits = None, []
    for piece in ids.split(sizes, 1):
        out = net(piece, past_key_values=cache, use_cache=True, **kwargs)
        cache = out.past_key_values
        logits.append(out.logits)
    assert cache is not None
    return torch.cat(logits, 1), cache
