"""Feature maps and priorities in closed form, from the moments of the donor's heads."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stitch.conversions.recurrence.forms import memories
from stitch.conversions.recurrence.head_moments import HeadMoments
from stitch.modeling.modeling_features import Centred, Exponents, Hedgehog, Mean, Priority, Random
from stitch.modeling.modeling_recurrent import RecurrentForCausalLM

SPREAD = 3.0  # initial length of a hedgehog's directions: with 1 the final loss is higher
SLOPE = 0.2  # initial slope of priorities per token: slots start nearly as a window


def initialise(net: RecurrentForCausalLM, sums: Sequence[HeadMoments], seed: int) -> None:
    """Initialises every feature map and priority in closed form."""
    generator = torch.Generator().manual_seed(seed)
    with_map = [memory for memory in memories(net) if memory.map is not None]
    for memory, own in zip(with_map, sums, strict=True):
        initialise_map(memory.map, own, generator)
        if memory.priority is not None:
            initialise_priority(memory.priority, own, generator)


@torch.no_grad()
def initialise_map(map: nn.Module, sums: HeadMoments, generator: torch.Generator) -> None:
    """Initialises a feature map from moments. MLPs start with an output of 0.

    `Centred` maps get their means. `Mean` gives old keys the weight of their mean, e^{q·μ}. For `Hedgehog` see below.
    """
    mean, query_mean = sums.k / sums.count, sums.q.mean(1) / sums.count
    if isinstance(map, Centred):
        map.key_mean.copy_(mean)
        map.query_mean.copy_(query_mean)
    if isinstance(map, Random):
        map.directions.copy_(_draw_directions(map.directions, generator, gaussian=True))
    if isinstance(map, Mean):
        map.query.weight.copy_(mean[:, None, None].expand_as(map.query.weight))
        _initialise_mlp(map.query, sums.qq / sums.count, generator)
    if isinstance(map, Hedgehog):
        _initialise_hedgehog(map, mean, query_mean, generator)
        _initialise_mlp(map.key, sums.kk / sums.count, generator)
        _initialise_mlp(map.query, sums.qq / sums.count, generator)


def _initialise_hedgehog(map: Hedgehog, mean: Tensor, query_mean: Tensor, generator: torch.Generator) -> None:
    """The weight of the mean key, times a kernel of orthogonal directions and their negatives."""
    w = _draw_directions(map.key.weight, generator, gaussian=False).to(mean)
    # With x' = x − mean and h = |w|² / 2d, features exp(wx' − h|x'|²) have the kernel e^{2h q'·k'} in expectation.
    h = SPREAD**2 / (2 * mean.shape[-1])
    square = -h * torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device)
    for side, own, other in ((map.key, mean, query_mean), (map.query, query_mean, mean)):
        bias = -torch.einsum("gfd,gd->gf", w, own) - h * own.square().sum(-1, keepdim=True)
        weight = w + (2 * h * own + other)[:, None]
        if side is map.key:
            bias = bias - (own * other).sum(-1, keepdim=True) - math.log(map.dimension)
        else:
            weight, bias = weight[:, None], bias[:, None]
        side.weight.copy_(weight.expand_as(side.weight))
        side.bias.copy_(bias.expand_as(side.bias))
        assert side.square is not None
        side.square.copy_(square.expand_as(side.square))


@torch.no_grad()
def initialise_priority(priority: Priority, sums: HeadMoments, generator: torch.Generator) -> None:
    """Priority by position alone, with the inputs of its MLP normalised to mean 0 and variance 1."""
    mean = torch.cat([sums.k, sums.v], -1) / sums.count
    square = torch.cat([sums.kk.diagonal(dim1=-2, dim2=-1), sums.squares], -1) / sums.count
    deviation = (square - mean.square()).clamp_min(0).sqrt()
    priority.mean.copy_(mean)
    priority.scale.copy_(1 / deviation.clamp_min(1e-6 * deviation.mean()))
    priority.slope.fill_(SLOPE)
    size = mean.shape[-1]
    _initialise_mlp(priority.read, torch.eye(size).to(mean).expand(len(mean), size, size), generator)


def _initialise_mlp(exponents: Exponents, products: Tensor, generator: torch.Generator) -> None:
    """Hidden units read random directions, with a standard deviation of 2. The output weights stay 0."""
    if exponents.up is None or exponents.up_bias is None:
        return
    square = products.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None].to(exponents.up)
    rows = 2 * torch.randn(exponents.up.shape, generator=generator).to(square) / square.sqrt()
    exponents.up.copy_(torch.where(square > 0, rows, 0.0))  # a pruned head has queries of 0
    exponents.up_bias.copy_(torch.randn(exponents.up_bias.shape, generator=generator).to(square))


def _draw_directions(like: Tensor, generator: torch.Generator, *, gaussian: bool) -> Tensor:
    """Rows of random orthogonal matrices and their negatives [groups, dimension, width].

    Their lengths are those of Gaussian vectors or, if not `gaussian`, SPREAD.
    """
    groups, dimension, width = like.shape
    rows = []
    for _ in range(-(-dimension // (2 * width))):
        noise = torch.randn(groups, width, width, generator=generator, dtype=torch.float64)
        lengths = torch.randn(groups, width, width, generator=generator, dtype=torch.float64).norm(dim=2, keepdim=True)
        rows.append(torch.linalg.qr(noise)[0] * (lengths if gaussian else SPREAD))
    half = torch.cat(rows, 1)[:, : -(-dimension // 2)]
    return torch.cat([half, -half], 1)[:, :dimension].to(like)
