"""Recurrent forms of a model: their settings, how they are built, and the bytes of their state."""

import copy
from dataclasses import dataclass, replace

import torch
from torch import nn
from transformers import PreTrainedConfig

from stitch.errors import UsageError
from stitch.modeling.modeling_composite import parts_of, sliding_windows
from stitch.modeling.modeling_recurrent import (
    RecurrentConfig,
    RecurrentForCausalLM,
    RecurrentMemory,
    attentions,
    shape_of,
)
from stitch.models.flow import FAMILY_ERRORS, one_line
from stitch.models.model import Model
from stitch.translation.module import copy_translations

CHUNK = 64
TRIED = 8  # tokens


@dataclass(frozen=True, kw_only=True)
class RecurrentForm:
    """Settings of a recurrent form (see `RecurrentConfig`) and of its fit."""

    features: str
    window: int
    sinks: int
    slots: int = 0
    dimension: int | None = None
    hidden: int = 0
    keys: tuple[tuple[int, ...], ...] | None = None
    layers: tuple[int, ...] | None = None
    steps: int = 0
    logit_steps: int = 0
    seed: int = 0

    def config(self, base) -> RecurrentConfig:
        return RecurrentConfig(
            base_config=base, features=self.features, window=self.window, sinks=self.sinks, slots=self.slots,
            dimension=self.dimension, hidden=self.hidden, keys=None if self.keys is None else [list(one) for one in self.keys],
            layers=None if self.layers is None else list(self.layers), chunk=CHUNK,
        )  # fmt: skip


def check_convertible(model: Model, context: int) -> None:
    """Raises UsageError unless attention is a plain causal softmax over the whole context."""
    for part in parts_of(model.config):
        _check_attention(model, part)
    windows = sliding_windows(model.config)
    if shortest := [window for window in windows if window is not None and window < context]:
        raise UsageError(
            f"`context` must be at most the sliding window of {model.name}, {min(shortest)} tokens; got {context}: lower it or "
            "choose another model."
        )
    if not all(part.anatomy.tested for part in model.parts) and (different := _changed(model)):
        raise UsageError(
            f"a model must stay the same with a window over the whole text to become recurrent; {model.name} "
            f"({model.config.model_type}) does not: {different}. Choose another model."
        )


@torch.no_grad()
def _changed(model: Model) -> str | None:
    """How the logits of the recurrent form in which all keys are exact differ from the model's, in words; None: they do not.

    Attention that does not use transformers' attention interface stays as it was, and a state of another kind is not kept.
    """
    if (found := len(attentions(model.net))) != model.depth:
        return f"its {model.depth} blocks have {found} attentions that keep keys"
    ids = torch.arange(2, 2 + TRIED, device=model.device)[None]
    try:
        net = wrap(model, RecurrentForm(features="none", window=TRIED, sinks=0))
        wanted = model.net(input_ids=ids, use_cache=False).logits.float()
        whole, cache, pieces = net(ids, use_cache=False).logits.float(), None, []
        for piece in ids.split(TRIED // 2, 1):
            out = net(piece, past_key_values=cache, use_cache=True)
            cache, pieces = out.past_key_values, [*pieces, out.logits.float()]
    except FAMILY_ERRORS as error:
        return f"it fails ({one_line(error)})"
    allowed = torch.finfo(model.dtype).eps ** 0.5 * wanted.abs().max()
    for name, found in (("a whole text", whole), ("a text in two pieces", torch.cat(pieces, 1))):
        if not (found - wanted).abs().max() <= allowed:
            return f"{name} changes its logits by {float((found - wanted).abs().max()):.2g}"
    return None


def _check_attention(model: Model, config: PreTrainedConfig) -> None:
    if getattr(config, "attn_logit_softcapping", None):
        raise UsageError(
            f"attention scores must not be capped to become recurrent; those of {model.name} are: choose another model."
        )
    if getattr(config, "is_causal", True) is False:
        raise UsageError(
            f"attention must be causal to become recurrent; that of {model.name} is not: choose another model."
        )
    if getattr(config, "alibi", False) or getattr(config, "position_embedding_type", None) == "alibi":
        raise UsageError(
            f"attention scores must be products of queries and keys; {model.name} adds ALiBi: choose another model."
        )


def wrap(model: Model, form: RecurrentForm) -> RecurrentForCausalLM:
    """The model with recurrent attention. Weights are copied; feature maps are zero."""
    with torch.device(model.device):
        net = RecurrentForCausalLM(form.config(model.config))
    net.base.load_state_dict(model.net.state_dict())
    net.base.to(model.dtype)
    copy_translations(model.net, net.base)
    net.base.requires_grad_(False)
    net.generation_config = copy.deepcopy(model.net.generation_config)
    if net.generation_config is not None:
        net.generation_config.cache_implementation = None
    return net.eval()


def sibling(net: RecurrentForCausalLM, form: RecurrentForm) -> RecurrentForCausalLM:
    """Another recurrent form of the same model. Both share the stock model's weights."""
    new = copy.copy(net)
    new._modules = dict(net._modules)
    new.config = form.config(net.config.base_config)
    shapes = [shape_of(module.config) for module in attentions(net.base)]
    blocks = [RecurrentMemory(new.config, shape, layer) for layer, shape in enumerate(shapes)]
    new.memories = nn.ModuleList(blocks).to(net.device).eval()
    return new


def memories(net: RecurrentForCausalLM) -> list[RecurrentMemory]:
    """The `RecurrentMemory` of every block, in order."""
    return list(net.memories)  # pyright: ignore[reportReturnType]


@torch.no_grad()
def state_bytes(net: RecurrentForCausalLM, tokens: int) -> int:
    """Bytes of the cache after one sequence of `tokens` tokens."""
    ids = torch.zeros(1, tokens, dtype=torch.long, device=net.device)
    return net(ids, use_cache=True, logits_to_keep=1).past_key_values.bytes()


def cache_bytes(model: Model, tokens: int) -> int:
    """Bytes of the keys and values that the stock model stores for `tokens` tokens."""
    shapes = [shape_of(module.config) for module in attentions(model.net)]
    return sum(2 * shape.groups * shape.width for shape in shapes) * tokens * model.dtype.itemsize


def dimension_of(net: RecurrentForCausalLM) -> float | None:
    """D / d, the number of features per dimension of a head; None without features."""
    found = [memory.map.dimension / memory.shape.width for memory in memories(net) if memory.map is not None]
    return found[0] if found else None


def matching_bytes(net: RecurrentForCausalLM, model: Model, form: RecurrentForm, context: int) -> RecurrentForm:
    """`form` with the smallest window at which its state is at least as large as that of `net`, in bytes."""
    wanted = state_bytes(net, context)
    at = [state_bytes(sibling(net, replace(form, window=window)), 1) for window in (1, 2)]
    if form.layers is not None:  # the other blocks keep all keys in both forms
        at = [state_bytes(sibling(net, replace(form, window=window)), context) for window in (1, 2)]
    window = 1 + max(0, -(-(wanted - at[0]) // (at[1] - at[0])))
    return replace(form, window=min(window, context - 1))
