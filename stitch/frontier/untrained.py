"""`null:untrained-a`: the composite with an A that never learnt anything."""

import copy
from dataclasses import replace

import torch

from stitch.frontier.alternative import Alternative, Means
from stitch.frontier.skips import joined, without_features
from stitch.modeling.modeling_composite import StitchConfig
from stitch.models.model import Model


def untrained_a(a: Model, b: Model, sites: tuple[int, int], row: str, means: Means) -> Alternative | None:
    """A's architecture with weights drawn anew, joined to B as the composite is: same sites, same text, same kind of translation.

    `row` is that of the composite's translation, without its features, which need an SAE of their own. Even an untrained network
    tells tokens and contexts apart, and B's late blocks can be reached from it: only what the composite gains on this row is due
    to what A learnt. None for a composite, across tokenizers, and where a second A takes more than half of the memory.
    Source: Bansal et al. 2021 (2106.07682) stitch to untrained networks; Smith et al. 2025 (ICML) say why controls are needed.
    """
    size = sum(parameter.nbytes for parameter in a.net.parameters())
    if isinstance(a.config, StitchConfig) or a.original or b.original or size > means.memory // 2:
        return None
    made = f"{a.name} with random weights, then {b.name}"
    return joined(untrained(a, means.seed), b, *sites, without_features(row), made, means)


def untrained(model: Model, seed: int) -> Model:
    """A model of the same architecture and dtype whose weights are as its family initialises them."""
    config = copy.deepcopy(model.config)
    vars(config).pop("quantization_config", None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = type(model.net)._from_config(config, dtype=model.dtype)
    return replace(model, net=net.to(model.device).eval().requires_grad_(False))  # pyright: ignore[reportArgumentType]
