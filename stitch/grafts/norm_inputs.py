"""What the norms of a model read, seen in forward passes."""

import contextlib
from collections.abc import Iterable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stitch.circuits.score import PROMPTS_AT_ONCE
from stitch.internals.weights import norm, norm_module
from stitch.models.model import Model

Spot = tuple[str, int]
"""("attention", block), ("mlp", block) or ("final", 0): a norm, and what reads it."""


def normalised_inputs(
    model: Model, spots: Iterable[Spot], ids: Int64[Tensor, "prompts length"]
) -> dict[Spot, Float[Tensor, "prompts length d"]]:
    """The residual stream as the norms at these spots make it, before their gain and bias; float64 on the CPU."""
    return {spot: norm(model, *spot).direction(x) for spot, x in norm_inputs(model, spots, ids).items()}


def input_lengths(
    model: Model, spots: Iterable[Spot], ids: Int64[Tensor, "prompts length"]
) -> dict[Spot, Float[Tensor, "prompts length"]]:
    """√(mean square) of the residual stream there; under LayerNorm, of what differs from its mean."""
    return {spot: input_length(model, spot, x) for spot, x in norm_inputs(model, spots, ids).items()}


def input_length(model: Model, spot: Spot, x: Float[Tensor, "prompts length d"]) -> Float[Tensor, "prompts length"]:
    return (x - x.mean(-1, keepdim=True) if norm(model, *spot).centred else x).square().mean(-1).sqrt()


class _Enough(Exception):
    """All that was asked for has been seen: the rest of the forward pass is not needed."""


@torch.no_grad()
def norm_inputs(
    model: Model, spots: Iterable[Spot], ids: Int64[Tensor, "prompts length"]
) -> dict[Spot, Float[Tensor, "prompts length d"]]:
    """What the norms at these spots read; float64 on the CPU."""
    seen: dict[Spot, list[Tensor]] = {spot: [] for spot in spots}

    def watch(spot: Spot):
        def hook(module: torch.nn.Module, args: tuple) -> None:
            seen[spot].append(args[0].double().cpu())
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
