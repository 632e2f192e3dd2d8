"""`null:untrained-a`: the composite with an A that never learnt anything."""

import copy
from dataclasses import replace
from uuid import uuid4

import torch

from stitch.frontier.alternative import Alternative, Means
from stitch.frontier.skips import joined, without_features
from stitch.modeling.modeling_composite import StitchConfig
from stitch.models.model import Model
from stitch.translation import rows as registry


def why_no_untrained_a(a: Model, b: Model, memory: int) -> str | None:
    """Why a report on A and B has no such row; None if it has one. `memory` is in bytes."""
    if isinstance(a.config, StitchConfig):
        return "A is a composite"
    if a.original is not None or b.original is not None:
        return "the models read different tokens"
    if not type(a.net).__module__.startswith("transformers."):
        return "code of others may not initialise every weight"
    if sum(parameter.nbytes for parameter in a.net.parameters()) > memory // 2:
        return "a second A takes more than half of `memory`"
    return None


def untrained_a(a: Model, b: Model, sites: tuple[int, int], row: str, means: Means) -> Alternative | None:
    """A's architecture with weights drawn anew, joined to B as the composite is: same sites, same text, same kind of translation.

    `row` is that of the composite's translation; features are left out of it, as they need an SAE of their own. Even an untrained
    network tells tokens and contexts apart, and B's late blocks can be reached from it. It is counted as A is, also where A
    shares a matrix with B: it has as many bytes for tables as the composite. None where `why_no_untrained_a` says why.
    Source: Bansal et al. 2021 (2106.07682) stitch to untrained networks; Smith et al. 2025 (ICML) say why controls are needed.
    """
    if why_no_untrained_a(a, b, means.memory) is not None:
        return None
    row = without_features(row)
    made = f"{a.name} with random weights, then {b.name} ({registry.row(row).short})"
    return joined(untrained(a, means.seed), b, *sites, row, made, means, counted_as=a)


def untrained(model: Model, seed: int) -> Model:
    """A model of the same architecture and dtype whose weights are as its family initialises them."""
    state = torch.random.get_rng_state()
    torch.default_generator.manual_seed(seed)  # that of the CPU alone
    try:
        net = type(model.net)._from_config(copy.deepcopy(model.config), dtype=model.dtype)
    finally:
        torch.random.set_rng_state(state)
    net.to(model.device).eval().requires_grad_(False)  # pyright: ignore[reportArgumentType]
    made = replace(model, name=f"{model.name} with random weights", net=net, altered=uuid4().hex)
    return made.with_flow(model.flow)
