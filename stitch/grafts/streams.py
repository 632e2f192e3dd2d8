"""What the norms of a model read, seen in forward passes."""

import contextlib
from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stitch.circuits.score import PROMPTS_AT_ONCE
from stitch.circuits.weights import norm, norm_module
from stitch.models import Model

Spot = tuple[str, int]
"""("attention", block), ("mlp", block) or ("final", 0): a norm, and what reads it."""


def directions(
    model: Model,
    spots: Iterable[Spot],
    ids: Int64[Tensor, "prompts length"],
    less: Float[Tensor, "length d"] | None = None,
) -> dict[Spot, Float[Tensor, "prompts length d"]]:
    """The residual stream as the norms at these spots make it, before their gain and bias; float64 on the CPU.

    `less` is what each position has of its own, taken away before.
    """
    return _read(model, spots, ids, lambda spot, x: norm(model, *spot).direction(x if less is None else x - less))


def lengths(
    model: Model, spots: Iterable[Spot], ids: Int64[Tensor, "prompts length"]
) -> dict[Spot, Float[Tensor, "prompts length"]]:
    """√(mean square) of the residual stream there; under LayerNorm, of what differs from its mean."""

    def length(spot: Spot, x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True) if norm(model, *spot).centred else x).square().mean(-1).sqrt()

    return _read(model, spots, ids, length)


class _Enough(Exception):
    """All that was asked for has been seen: the rest of the forward pass is not needed."""


@torch.no_grad()
def _read(
    model: Model, spots: Iterable[Spot], ids: Tensor, reading: Callable[[Spot, Tensor], Tensor]
) -> dict[Spot, Tensor]:
    seen: dict[Spot, list[Tensor]] = {spot: [] for spot in spots}

    def watch(spot: Spot):
        def hook(module: torch.nn.Module, args: tuple) -> None:
            seen[spot].append(reading(spot, args[0].double()).cpu())
            if len({len(parts) for parts in seen.values()}) == 1:
                raise _Enough

        return hook

    handles = [norm_module(model, *spot).register_forward_pre_hook(watch(spot)) for spot in seen]
    try:
        for part in ids.split(PROMPTS_AT_ONCE):
            with contextlib.suppress(_Enough):
                model.net(input_ids=part.to(model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return {spot: torch.cat(parts) for spot, parts in seen.items()}
