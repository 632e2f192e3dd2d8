"""What merging heads is decided by: the moments of a block's attention on the donor's stream."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stitch.conversions.heads.contraction import KeyMoments
from stitch.conversions.heads.merge import query_heads
from stitch.conversions.heads.refine import UNIFORM, AttentionRows, rows_of
from stitch.internals import weights
from stitch.internals.attend import heads_of, scores, stacked
from stitch.models.model import Model

ROWS = 64  # query positions per window, at least, on which keys are refined


@dataclass(frozen=True)
class HeadGroup:
    """Statistics of the old key heads that are merged into one."""

    keys: KeyMoments
    values: Float[Tensor, "stacked stacked"]  # second moment of the attended values
    output: Float[Tensor, "heads d width"]
    rows: Callable[[], AttentionRows]  # of the attention; computed on demand, as they are large

    @property
    def head_of(self) -> tuple[int, ...]:
        return self.keys.head_of

    @property
    def old(self) -> int:
        """The number of old key heads."""
        return len(self.values) // self.output.shape[1]


@dataclass(frozen=True)
class AttentionMoments:
    """Moments of one block's attention on the donor's stream, with all old heads stacked, in float64.

    Keys that are linear functions of one another give eigenvalues of zero. Products summed in float32 would turn them into ±1e-7
    of the largest, far above the floor below which `contraction.square_roots` counts a direction as unused.
    """

    key_mean: Float[Tensor, " stacked"]
    key_covariance: Float[Tensor, "stacked stacked"]
    queries: Float[Tensor, "heads d d"]
    attended: Float[Tensor, "stacked stacked"]


def chunks(stream: Float[Tensor, "windows t width"], heads: int) -> Iterator[slice]:
    """Slices of windows whose attention weights take about 64 MiB."""
    size = max(1, 2**26 // (4 * heads * stream.shape[1] ** 2))
    for start in range(0, len(stream), size):
        yield slice(start, min(start + size, len(stream)))


@torch.no_grad()
def block_moments(model: Model, block: int, stream: Float[Tensor, "windows t width"]) -> AttentionMoments:
    """Moments of the attention of `block` when it reads `stream`."""
    attention, theta = weights.attention(model, block), weights.frequencies(model)
    groups, heads = attention.k.shape[1], attention.q.shape[1]
    sums: dict[str, Tensor] = {}

    def add(name: str, value: Tensor) -> None:
        sums[name] = sums.get(name, torch.zeros((), dtype=torch.float64)) + value.cpu()

    tokens = stream.shape[0] * stream.shape[1]
    for rows in chunks(stream, heads):
        of = heads_of(attention, normed(model, block, stream[rows]))
        weight = scores(of.q, of.k, theta, attention.scale).softmax(-1)
        attended = torch.einsum("whij,wjs->swhi", weight, stacked(of.v)).flatten(1).double()
        keys, queries = stacked(of.k).flatten(0, 1).double(), of.q.double()
        add("mean", keys.sum(0))
        add("keys", keys.T @ keys)
        add("queries", torch.einsum("whtd,whte->hde", queries, queries))
        add("attended", attended @ attended.T)
    mean = sums["mean"] / tokens
    return AttentionMoments(
        mean,
        sums["keys"] / tokens - mean[:, None] * mean,
        sums["queries"] / tokens,
        sums["attended"] / tokens / (heads // groups) / groups,
    )


def normed(model: Model, block: int, stream: Tensor) -> Tensor:
    """The input of the attention of `block`."""
    return weights.norm_module(model, "attention", block)(stream)


def group_of(
    model: Model,
    block: int,
    members: tuple[int, ...],
    moments: AttentionMoments,
    rows: Callable[[], AttentionRows],
    context: int,
) -> HeadGroup:
    """The statistics of the key heads `members`, from the moments of their block."""
    attention = weights.attention(model, block)
    d = attention.q.shape[2]
    places = torch.cat([torch.arange(head * d, (head + 1) * d) for head in members])
    queries = query_heads(members, attention.shared)
    head_of = tuple(place for place in range(len(members)) for _ in range(attention.shared))
    keys = KeyMoments(
        moments.key_mean[places], moments.key_covariance[places][:, places], moments.queries[queries], head_of,
        weights.frequencies(model), context,
    )  # fmt: skip
    return HeadGroup(keys, moments.attended[places][:, places], attention.o.double().cpu()[queries], rows)


@torch.no_grad()
def attention_rows(
    model: Model,
    block: int,
    members: tuple[int, ...],
    stream: Float[Tensor, "windows t width"],
    seed: int,
    uniform: float = UNIFORM,
) -> AttentionRows:
    """Attention of the group's query heads at ROWS random positions per window, or at an eighth of all if that is more."""
    attention, theta = weights.attention(model, block), weights.frequencies(model)
    queries = query_heads(members, attention.shared)
    of = heads_of(attention, normed(model, block, stream))
    later = 1 + torch.randperm(stream.shape[1] - 1, generator=torch.Generator().manual_seed(seed))
    at = later[: max(ROWS, stream.shape[1] // 8)].sort().values.to(stream.device)
    q, own = of.q[:, queries][:, :, at], of.k[:, [head // attention.shared for head in queries]]
    wanted = scores(q, own, theta, attention.scale, at)
    return rows_of(q, stacked(of.k[:, list(members)]), wanted, theta, attention.scale, at, uniform)
