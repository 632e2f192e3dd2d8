"""The components of circuits, attention heads and MLP neurons: their outputs read or replaced during forward passes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stitch.models.model import Model

Place = tuple[str, int]
"""("heads", block) or ("neurons", block): all heads or all neurons of a block."""

Component = tuple[Place, int]
"""One head or neuron: its place, and its number there."""


def places(model: Model) -> list[Place]:
    return [(kind, block) for block in range(model.depth) for kind in ("heads", "neurons")]


@dataclass(frozen=True)
class Components:
    """A choice of heads and neurons, as a mask per block and kind. Features count as neurons where they replace them."""

    masks: dict[Place, Bool[Tensor, " components"]]

    @classmethod
    def none(cls, model: Model) -> "Components":
        return cls({place: torch.zeros(_count(model, place), dtype=torch.bool) for place in places(model)})

    def count(self, kind: str) -> int:
        return sum(int(mask.sum()) for place, mask in self.masks.items() if place[0] == kind)

    def blocks(self) -> list[int]:
        """The blocks that have at least one of the components."""
        return sorted({block for (_, block), mask in self.masks.items() if mask.any()})

    def listed(self) -> list[Component]:
        """The components one by one, in the order in which the model computes them."""
        return [(place, number) for place, mask in self.masks.items() for number in mask.nonzero()[:, 0].tolist()]

    def to_dict(self) -> dict:
        """{"heads": {"0": [1, 2]}, "neurons": {…}}: numbers by block, as a person edits them."""
        return {
            kind: {
                str(block): mask.nonzero()[:, 0].tolist()
                for (each, block), mask in self.masks.items()
                if each == kind and mask.any()
            }
            for kind in ("heads", "neurons")
        }


def check_located(model: Model) -> None:
    """Raises UsageError unless it is known of every block which projections read its heads and its neurons."""
    for place in places(model):
        _reader(model, place)


def _count(model: Model, place: Place) -> int:
    kind, block = place
    return model.heads(block) if kind == "heads" else _width(model.down(block))


def _width(projection: nn.Module) -> int:
    """The input width of a Linear, or of GPT-2's Conv1D, which stores the transposed weight."""
    weight: Tensor = projection.weight  # pyright: ignore[reportAssignmentType]
    return weight.shape[1] if isinstance(projection, nn.Linear) else weight.shape[0]


def _reader(model: Model, place: Place) -> nn.Module:
    """The module whose input is the outputs of these components."""
    kind, block = place
    return model.heads_out(block) if kind == "heads" else model.down(block)


@contextmanager
def watched(model: Model) -> Iterator[dict[Place, Float[Tensor, "prompts length columns"]]]:
    """Inside, each forward pass puts the outputs of all components into the dict: those of heads side by side, or of neurons."""
    seen: dict[Place, Tensor] = {}

    def watch(place: Place):
        def hook(module: nn.Module, args: tuple) -> None:
            seen[place] = args[0]

        return hook

    handles = [_reader(model, place).register_forward_pre_hook(watch(place)) for place in places(model)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def separated(model: Model) -> Iterator[tuple[dict[Place, Tensor], dict[Place, Tensor]]]:
    """Inside, a forward pass splits the outputs of all components from what is read of them: (as computed, as read), by place.

    Values do not change, but no gradient goes from the second to the first. The outputs of a component therefore have gradients
    with respect to those of earlier ones along direct paths only, through the residual stream and no third component.
    """
    computed: dict[Place, Tensor] = {}
    read: dict[Place, Tensor] = {}

    def separate(place: Place):
        def hook(module: nn.Module, args: tuple) -> tuple:
            computed[place], read[place] = args[0], args[0].detach().requires_grad_()
            return (read[place], *args[1:])

        return hook

    handles = [_reader(model, place).register_forward_pre_hook(separate(place)) for place in places(model)]
    try:
        yield computed, read
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def replaced(
    model: Model, kept: Components, values: Mapping[Place, Float[Tensor, "#prompts #length columns"]]
) -> Iterator[None]:
    """Inside, all components that are not `kept` have these `values` as outputs."""

    def replace(place: Place):
        mask = kept.masks[place].to(model.device)

        def hook(module: nn.Module, args: tuple) -> tuple:
            own = args[0]
            keep = mask.repeat_interleave(own.shape[-1] // len(mask))
            return (torch.where(keep, own, values[place].to(own.dtype)), *args[1:])

        return hook

    handles = [_reader(model, place).register_forward_pre_hook(replace(place)) for place in places(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
