"""Feature maps fitted to the softmax attention of the donor: initialised in closed form, then fitted to its attention outputs.

The objective is the unexplained share of variance over query rows i. It is computed for each block separately, and the inputs of
every block are the donor's own (LoLCATs, Zhang et al. 2024):

    |Σ_j (p̂_ij − p_ij) v_j|² / Var(Σ_j p_ij v_j)

p and p̂ are the attention weights of donor and recurrent form. KL(p ‖ p̂) as the objective also fits large weights whose values
matter little: after equal steps, models with slots are then a third to two thirds further from their donor. Models with many
features and no slots are slightly closer (benchmarks/README.md).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from stitch.conversions.distil import adam
from stitch.conversions.recurrence.forms import memories
from stitch.modeling.modeling_features import Centred, Exponents, Hedgehog, Mean, Priority, Random
from stitch.modeling.modeling_recurrent import LARGE_NEGATIVE, RecurrentForCausalLM, RecurrentMemory, group_matmul
from stitch.progress import Progress
from stitch.text.windows import Windows

ROWS = 256  # queries per step, at the same positions of each window: neighbouring queries are nearly redundant
FIRST = 1  # tokens left out of moments: the key of the first token is an outlier
SPREAD = 3.0  # initial length of a hedgehog's directions: with 1 the final loss is higher
SLOPE = 0.2  # initial slope of priorities per token: slots start nearly as a window
SOFT = 0.3  # width of a priority's threshold in the gradient, in standard deviations of the priorities


@dataclass(frozen=True)
class HeadInputs:
    """Queries, keys and values of one block's heads. A score, in nats, is `scaling` · q·k."""

    memory: RecurrentMemory
    q: Float[Tensor, "batch groups shared tokens width"]
    k: Float[Tensor, "batch groups tokens width"]
    v: Float[Tensor, "batch groups tokens width_v"]
    scaling: float


class DonorAttention:
    """Replaces `AttentionContext`: stock attention that calls `visit` with the heads of every block that has a feature map."""

    def __init__(self, memories: nn.ModuleList, visit: Callable[[HeadInputs], object]):
        self.memories, self.visit = memories, visit

    def attend(self, module: Any, q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
        memory: Any = self.memories[module.memory_index]
        wide = torch.promote_types(q.dtype, torch.float32)
        if memory.map is not None:
            own = q.to(wide).unflatten(1, (memory.shape.groups, memory.shape.shared))
            self.visit(HeadInputs(memory, own, k.to(wide), v.to(wide), scaling))
        return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)


@torch.no_grad()
def visit_heads(
    net: RecurrentForCausalLM, ids: Int64[Tensor, "batch tokens"], visit: Callable[[HeadInputs], object]
) -> None:
    """Runs the donor once and calls `visit` with the heads of every block that has a feature map."""
    body: Any = net.base.base_model
    body(input_ids=ids.to(net.device), use_cache=False, recurrent=DonorAttention(net.memories, visit))


@dataclass
class HeadMoments:
    """Sums over `count` tokens of queries, keys, values and their products; q and k are multiplied by scaling^½."""

    count: int
    q: Float[Tensor, "groups shared width"]
    qq: Float[Tensor, "groups shared width width"]
    k: Float[Tensor, "groups width"]
    kk: Float[Tensor, "groups width width"]
    v: Float[Tensor, "groups width_v"]
    squares: Float[Tensor, "groups width_v"]  # of values

    @classmethod
    def of(cls, heads: HeadInputs) -> "HeadMoments":
        root = heads.scaling**0.5
        q, k = heads.q[:, :, :, FIRST:].double() * root, heads.k[:, :, FIRST:].double() * root
        v = heads.v[:, :, FIRST:].double()
        return cls(
            k.shape[0] * k.shape[2], q.sum((0, 3)), (q.mT @ q).sum(0), k.sum((0, 2)), (k.mT @ k).sum(0),
            v.sum((0, 2)), v.square().sum((0, 2)),
        )  # fmt: skip

    def plus(self, more: "HeadMoments") -> "HeadMoments":
        return HeadMoments(*(getattr(self, field.name) + getattr(more, field.name) for field in fields(self)))


def head_moments(
    net: RecurrentForCausalLM, windows: Windows, batch: int, progress: Progress | None = None
) -> list[HeadMoments]:
    """Moments of every block that has a feature map, in order. All recurrent forms of a model are initialised from them."""
    found: dict[RecurrentMemory, HeadMoments] = {}

    def add(heads: HeadInputs) -> None:
        new, memory = HeadMoments.of(heads), heads.memory
        found[memory] = found[memory].plus(new) if memory in found else new

    for start in range(0, len(windows.ids), batch):
        ids = windows.ids[start : start + batch].long()
        visit_heads(net, ids, add)
        if progress:
            progress("moments (windows)", start + len(ids), len(windows.ids))
    return list(found.values())


def initialise(net: RecurrentForCausalLM, sums: Sequence[HeadMoments], seed: int) -> None:
    """Initialises every feature map and priority in closed form."""
    generator = torch.Generator().manual_seed(seed)
    with_map = [memory for memory in memories(net) if memory.map is not None]
    for memory, own in zip(with_map, sums, strict=True):
        initialise_map(memory.map, own, generator)
        if memory.priority is not None:
            initialise_priority(memory.priority, own, generator)


def draw_rows(tokens: int, batch: int, generator: torch.Generator) -> Int64[Tensor, " rows"]:
    """Positions of the queries in a step of `batch` windows, ascending."""
    return torch.randperm(tokens, generator=generator)[: max(1, ROWS // batch)].sort().values


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


def output_loss(heads: HeadInputs, rows: Int64[Tensor, " rows"]) -> Float[Tensor, ""]:
    """The objective of one block on the query rows `rows`."""
    memory, root = heads.memory, heads.scaling**0.5
    q, k = heads.q[:, :, :, rows], heads.k
    column = torch.arange(k.shape[2], device=k.device)
    ago = rows[:, None] - column
    scores = (group_matmul(q, k.mT) * heads.scaling).masked_fill(ago < 0, LARGE_NEGATIVE)
    plain_k, log_k = memory.map.keys(k * root)
    plain_q, log_q = memory.map.queries(q * root)
    # float64, as past and future keys share one shift here. Sinks are always exact, and their keys may be extreme.
    log_k = log_k.double().masked_fill((column < memory.sinks)[:, None], -math.inf)
    shift = log_k.amax(2, keepdim=True).detach()
    log_q = log_q + shift[:, :, None]
    best = log_q.amax(-1, keepdim=True).detach()
    left, right = (log_q - best).exp(), (log_k - shift).exp()
    if plain_k is not None:
        left, right = left * plain_q, right * plain_k
    old = group_matmul(left, right.mT).clamp_min(1e-300).log() + best
    exact = (ago < per_head(memory.windows, k)) | (column < memory.sinks)
    old = old.to(scores)
    if memory.priority is not None:
        kept = kept_weights(memory, memory.priority(k * root, heads.v, column), ~exact)[:, :, None]
        best = torch.maximum(scores, old).detach()
        old = (kept * (scores - best).exp() + (1 - kept) * (old - best).exp()).clamp_min(1e-30).log() + best
    logs = torch.where(exact[:, None], scores, old).masked_fill(ago < 0, LARGE_NEGATIVE)
    wanted = group_matmul(scores.softmax(-1), heads.v)
    scale = (wanted - wanted.mean((0, 3), keepdim=True)).square().mean()
    return (group_matmul(logs.softmax(-1), heads.v) - wanted).square().mean() / scale


def per_head(sizes: Sequence[int], like: Tensor) -> Int64[Tensor, "groups 1 1"]:
    """`sizes` by key head, on the device of `like`, to be compared with [groups, rows, tokens]."""
    return torch.tensor(sizes, device=like.device)[:, None, None]


def kept_weights(
    memory: RecurrentMemory, priority: Float[Tensor, "batch groups tokens"], old: Bool[Tensor, "groups rows tokens"]
) -> Float[Tensor, "batch groups rows tokens"]:
    """1 where an old key has a slot, else 0, with the gradient of a sigmoid at the threshold (straight-through estimator)."""
    ranked = priority[:, :, None].masked_fill(~old, -math.inf)
    slots, most = per_head(memory.slots, priority), min(max(memory.slots) + 1, ranked.shape[-1])
    # −∞ is appended, as there is no next key where all keys have slots.
    best = nn.functional.pad(ranked.topk(most, -1).values, (0, 1), value=-math.inf)
    place = slots.clamp_max(most).expand(*ranked.shape[:-1], 1)
    last, next = best.gather(-1, (place - 1).clamp_min(0)), best.gather(-1, place)
    threshold = torch.where(next > -math.inf, (last + next) / 2, torch.full_like(last, LARGE_NEGATIVE))
    above = priority[:, :, None] - threshold
    soft = (above / (SOFT * priority.std(-1).detach().clamp_min(1e-6)[..., None, None])).sigmoid()
    return (above > 0).to(soft) + soft - soft.detach()


def fit_outputs(
    net: RecurrentForCausalLM,
    windows: Windows,
    *,
    steps: int,
    rate: float,
    batch: int,
    seed: int = 0,
    progress: Progress | None = None,
    task: str = "feature maps (steps)",
) -> list[float]:
    """Minimises the objective, summed over blocks, by Adam. Returns its mean over blocks for each step."""
    generator = torch.Generator().manual_seed(seed)
    course: list[float] = []

    def backward(ids: Tensor) -> None:
        rows = draw_rows(ids.shape[1], len(ids), generator).to(net.device)
        found = []

        def visit(heads: HeadInputs) -> None:
            with torch.enable_grad():
                loss = output_loss(heads, rows)
                loss.backward()
            found.append(loss.detach())

        visit_heads(net, ids, visit)
        course.append(float(torch.stack(found).mean()))

    adam(
        feature_parameters(net),
        windows,
        backward,
        steps=steps,
        rate=rate,
        batch=batch,
        seed=seed,
        progress=progress,
        task=task,
    )
    return course


def feature_parameters(net: RecurrentForCausalLM) -> list[nn.Parameter]:
    return [one for one in net.memories.parameters() if one.requires_grad]
