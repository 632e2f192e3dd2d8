"""The inputs of a model's norms on given prompts: raw, normalised, and their lengths."""

from collections.abc import Iterable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stitch.circuits.score import PROMPTS_AT_ONCE
from stitch.internals.weights import Spot, norm, norm_module
from stitch.models.model import Model
from stitch.models.module_inputs import module_inputs


def norm_inputs(
    model: Model, spots: Iterable[Spot], ids: Int64[Tensor, "prompts length"]
) -> dict[Spot, Float[Tensor, "prompts length d"]]:
    """The residual stream that the norms at these spots read; float64 on the CPU."""
    modules = {spot: norm_module(model, *spot) for spot in spots}
    seen: dict[Spot, list[Tensor]] = {spot: [] for spot in modules}
    for part in ids.split(PROMPTS_AT_ONCE):
        for spot, x in module_inputs(model.net, modules, input_ids=part.to(model.device)).items():
            seen[spot].append(x.double().cpu())
    return {spot: torch.cat(parts) for spot, parts in seen.items()}


def normalised_inputs(
    model: Model, spots: Iterable[Spot], ids: Int64[Tensor, "prompts length"]
) -> dict[Spot, Float[Tensor, "prompts length d"]]:
    """The residual stream after the norms at these spots, without their gain and bias; float64 on the CPU."""
    return {spot: norm(model, *spot).direction(x) for spot, x in norm_inputs(model, spots, ids).items()}


def input_lengths(
    model: Model, spots: Iterable[Spot], ids: Int64[Tensor, "prompts length"]
) -> dict[Spot, Float[Tensor, "prompts length"]]:
    """`input_length` at each of the spots."""
    return {spot: input_length(model, spot, x) for spot, x in norm_inputs(model, spots, ids).items()}


def input_length(model: Model, spot: Spot, x: Float[Tensor, "prompts length d"]) -> Float[Tensor, "prompts length"]:
    """The root mean square of a stream over its channels; LayerNorm subtracts the mean first."""
    return (x - x.mean(-1, keepdim=True) if norm(model, *spot).centred else x).square().mean(-1).sqrt()
