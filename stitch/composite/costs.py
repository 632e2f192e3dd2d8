"""The costs of a composite and of its donors: block FLOPs per token, and parameter counts."""

from dataclasses import dataclass
from functools import cached_property

import torch

from stitch.composite.compose import early_seam, late_half
from stitch.modeling.modeling_composite import build_early
from stitch.models.anatomy import truncated
from stitch.models.flops import block_flops
from stitch.models.model import Model


@dataclass(frozen=True)
class Costs:
    """Costs of joining `source` to `target` at any pair of sites, for windows of `context` tokens.

    FLOPs are those of blocks and translation. Embedding, final norm and head are left out, as every model has them.
    """

    source: Model
    target: Model
    context: int

    @cached_property
    def source_blocks(self) -> list[float]:
        return [block_flops(self.source.config, block, self.context) for block in range(self.source.depth)]

    @cached_property
    def target_blocks(self) -> list[float]:
        return [block_flops(self.target.config, block, self.context) for block in range(self.target.depth)]

    @property
    def costlier_donor(self) -> float:
        """Block FLOPs per token of the donor that costs more."""
        return max(sum(self.source_blocks), sum(self.target_blocks))

    def flops(self, site: int, onto: int, multiply_adds: int) -> float:
        """FLOPs per token of the source's first `site` blocks, a translation of `multiply_adds`, the target's from `onto`."""
        return sum(self.source_blocks[:site]) + 2.0 * multiply_adds + sum(self.target_blocks[onto:])

    def share(self, site: int, onto: int, flops: float) -> float:
        """The composite's place between source (0) and target (1) by FLOPs, clipped to 0..1.

        Where both models cost the same, it is the share of the composite's blocks that are the target's.
        """
        ends = sum(self.source_blocks), sum(self.target_blocks)
        if ends[0] == ends[1]:
            late = self.target.depth - onto
            return late / max(1, site + late)
        return min(1.0, max(0.0, (flops - ends[0]) / (ends[1] - ends[0])))

    @cached_property
    def source_parameters(self) -> list[int]:
        """Parameters of the source's embedding and its blocks before a site, by site."""
        return [_early_parameters(self.source, site) for site in range(self.source.depth + 1)]

    @cached_property
    def target_parameters(self) -> list[int]:
        """Parameters of the target's blocks from a site on, its final norm and head, by site."""
        return [whole_parameters(late_half(self.target, site)) for site in range(self.target.depth + 1)]

    def parameters(self, site: int, onto: int, translation: int) -> int:
        """Parameters of the composite, with a translation that has `translation` of them."""
        return self.source_parameters[site] + translation + self.target_parameters[onto]


def whole_parameters(net: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def _early_parameters(source: Model, site: int) -> int:
    with torch.device("meta"):
        return whole_parameters(
            build_early(truncated(source.config, 0, site), {"a_identity": early_seam(source.config)})
        )
