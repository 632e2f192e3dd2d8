"""What the attention of a model computes, seen and replaced during forward passes: patterns, values, and outputs of heads."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from stitch.errors import UsageError
from stitch.models.model import Model

NAME = "stitch_replaced"  # of the attention function, in transformers' table of them


@dataclass(frozen=True)
class Attended:
    """The attention of one block in a forward pass.

    `pattern` has the probabilities, 0 where a key may not be seen; `values` are those of the key heads, repeated for the query
    heads that share them. `exact` is the heads' output, `pattern @ values`.
    """

    block: int
    pattern: Float[Tensor, "windows heads t t"]
    visible: Bool[Tensor, "windows heads t t"]
    values: Float[Tensor, "windows heads t d"]

    @property
    def exact(self) -> Float[Tensor, "windows heads t d"]:
        return self.pattern.to(self.values) @ self.values


Attend = Callable[[Attended], Tensor]  # returns the heads' output [windows, heads, t, d] that the model goes on with


@contextmanager
def attending(model: Model, attend: Attend) -> Iterator[None]:
    """Inside, every attention of `model` gives what `attend` returns. For passes over whole windows, without a cache.

    Raises: UsageError at the end, where a block's attention was not replaced, and for attention with sinks of its own or a
    bias by position.
    """
    blocks = _blocks_of(model)
    seen: set[int] = set()

    def replaced(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None = None,
        softcap: float | None = None, **kwargs: Any,
    ) -> tuple[Tensor, None]:  # fmt: skip
        if any(kwargs.get(name) is not None for name in ("s_aux", "position_bias")):
            raise UsageError(f"the attention of {model.name} has terms that are not known here: choose another model.")
        block = blocks[module]
        seen.add(block)
        shared = query.shape[1] // key.shape[1]
        key, value = (part.repeat_interleave(shared, 1) for part in (key, value))
        scores = query @ key.mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        if softcap is not None:
            scores = softcap * (scores / softcap).tanh()
        visible = _visible(scores, mask)
        pattern = scores.float().masked_fill(~visible, -torch.inf).softmax(-1)
        out = attend(Attended(block, pattern, visible, value))
        return out.transpose(1, 2).contiguous(), None

    configs = {id(found): found for part in model.net.modules() if (found := _config_of(part)) is not None}.values()
    before = [config._attn_implementation for config in configs]
    AttentionInterface.register(NAME, replaced)
    AttentionMaskInterface.register(NAME, eager_mask)
    for config in configs:
        config._attn_implementation = NAME
    try:
        yield
    finally:
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation = name
        AttentionInterface.register(NAME, _ended)  # transformers' table would keep the model alive
    if len(seen) != model.depth:
        missing = sorted(set(range(model.depth)) - seen)
        raise UsageError(
            f"the attention of every block must be a function that transformers lets one replace; that of block {missing[0]} of "
            f"{model.name} is not: choose another model."
        )


def _ended(*_: Any, **__: Any) -> tuple[Tensor, None]:
    raise RuntimeError("the attention of this model is replaced inside `attending` alone.")


def _blocks_of(model: Model) -> dict[nn.Module, int]:
    """The block that each module of the model's blocks is in."""
    return {module: index for index, block in enumerate(model.blocks) for module in block.modules()}


def _config_of(module: nn.Module) -> Any:
    config = getattr(module, "config", None)
    return config if getattr(config, "_attn_implementation", None) is not None else None


def _visible(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Which keys each query may see: those of `mask`, boolean or added to scores, or all that come before it."""
    if mask is None:
        size = scores.shape[-1]
        return torch.ones(size, size, dtype=torch.bool, device=scores.device).tril().expand_as(scores)
    mask = mask[..., : scores.shape[-1]]
    return (mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2).expand_as(scores)
