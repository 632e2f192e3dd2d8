"""Converts attentions block by block, with the stream of each converted model, so that refits correct earlier blocks' errors."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from stitch.activations.observe import residuals
from stitch.conversions.heads.contraction import KeyMoments
from stitch.conversions.heads.merge import Groups, Keys, Merged, Values, merged_weights, query_heads
from stitch.conversions.heads.normalised import merged_normalised
from stitch.conversions.heads.refine import UNIFORM, AttentionRows, rows_of
from stitch.conversions.heads.seams import entering
from stitch.internals import weights
from stitch.internals.attend import Heads, heads_of, mixed, scores, stacked
from stitch.internals.weights import Attention
from stitch.models.model import Model
from stitch.progress import Progress
from stitch.regression.moments import accumulate
from stitch.regression.prior import ridge_towards

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
class Method:
    """How the heads of a group are merged. `refit`: whether output weights are then refitted, block after block."""

    keys: Callable[[HeadGroup], Keys]
    values: Callable[[HeadGroup], Values]
    refit: bool


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


@dataclass
class ConvertedStreams:
    """A model during its conversion.

    `streams` are those leaving the last converted block, by split; `earlier` are streams that a later seam reads. `attentions`
    are the converted ones so far.
    """

    streams: dict[str, Float[Tensor, "windows t width"]]
    earlier: dict[str, dict[int, Tensor]]
    attentions: list[Attention] = field(default_factory=list)

    def enter(self, model: Model, block: int, ids: dict[str, Tensor]) -> None:
        """Makes the streams those that `block` reads."""
        self.streams = {
            split: entering(model, block, stream, ids[split], self.earlier[split])
            for split, stream in self.streams.items()
        }

    def refit(self, model: Model, block: int, new: Attention, target: dict[str, Tensor]) -> Attention:
        """`new` with output weights refitted so that streams after it are near `target`. Moves `streams` through the block."""
        attended = {split: attention_output(model, block, new, stream) for split, stream in self.streams.items()}
        new = refitted_outputs(new, attended, self.streams, target)
        self.streams = {
            split: after_mlp(model, block, stream + written(new, attended[split]))
            for split, stream in self.streams.items()
        }
        return new


@torch.no_grad()
def attention_output(
    model: Model, block: int, attention: Attention, stream: Float[Tensor, "windows t width"]
) -> Float[Tensor, "windows heads t d"]:
    """The attended values of every head, before the output weights."""
    theta = weights.frequencies(model)
    found = []
    for rows in chunks(stream, attention.q.shape[1]):
        of: Heads = heads_of(attention, normed(model, block, stream[rows]))
        found.append(mixed(scores(of.q, of.k, theta, attention.scale).softmax(-1), of.v))
    return torch.cat(found)


def written(attention: Attention, heads: Float[Tensor, "windows heads t d"]) -> Float[Tensor, "windows t width"]:
    """The output of the attention for the attended values `heads`."""
    out = torch.einsum("whtd,hdm->wtm", heads, attention.o.to(heads))
    return out if attention.o_bias is None else out + attention.o_bias.to(heads)


def after_mlp(model: Model, block: int, stream: Tensor) -> Tensor:
    """The stream leaving `block`, from that after its attention."""
    return stream + model.blocks[block].get_submodule(model.anatomy.mlp)(
        weights.norm_module(model, "mlp", block)(stream)
    )


@torch.no_grad()
def convert(
    donor: Model,
    groups: Callable[[Model, int, AttentionMoments, int], Groups],
    methods: dict[str, Method],
    ids: dict[str, Tensor],
    *,
    sample: int,
    seed: int = 0,
    observe: Callable[[Model, int, list[HeadGroup], dict[str, Merged], Tensor], None] | None = None,
    progress: Progress | None = None,
) -> dict[str, list[Attention]]:
    """The attentions of every method, block by block.

    `ids` holds windows to fit on ("fit") and to choose λ on ("sweep"). Keys are refined on the attention of the first `sample`
    windows of the former. `groups` and `observe` get every block as a part of a composite and the block's number there. `observe`
    also gets the block's groups, the merged heads of each method and the held-out stream.
    """
    start = {split: _embedded(donor, windows) for split, windows in ids.items()}

    def new_streams(has_streams: bool) -> ConvertedStreams:
        return ConvertedStreams(dict(start) if has_streams else {}, {split: {} for split in ids})

    own, converted = new_streams(True), {name: new_streams(method.refit) for name, method in methods.items()}
    for number in range(donor.depth):
        model, block = donor.in_part(number)
        for one in (own, *converted.values()):
            one.enter(donor, number, ids)
        old, streams = weights.attention(model, block), own.streams
        moments = block_moments(model, block, streams["fit"])
        grouping = groups(model, block, moments, streams["fit"].shape[1])
        found = [
            group_of(
                model, block, members, moments,
                partial(attention_rows, model, block, members, streams["fit"][:sample], seed), streams["fit"].shape[1],
            )
            for members in grouping
        ]  # fmt: skip
        outputs = {split: attention_output(model, block, old, stream) for split, stream in streams.items()}
        read = {split: normed(model, block, stream) for split, stream in streams.items()}
        after = {split: stream + written(old, outputs[split]) for split, stream in streams.items()}
        made = merge_by_method(methods, grouping, found)
        if observe:
            observe(model, block, found, made, streams["sweep"])
        for name, method in methods.items():
            new = merged_attention(old, made[name], read)
            if method.refit:
                new = converted[name].refit(model, block, new, after)
            converted[name].attentions.append(new.to(donor.dtype))  # less memory than float64, in which it was solved
        own.streams = {split: after_mlp(model, block, stream) for split, stream in after.items()}
        if progress:
            progress("blocks", number + 1, donor.depth)
    return {name: one.attentions for name, one in converted.items()}


def merge_by_method(methods: dict[str, Method], grouping: Groups, groups: list[HeadGroup]) -> dict[str, Merged]:
    """The merged heads of every method. What several methods share is computed once."""
    keys = {make: tuple(map(make, groups)) for make in dict.fromkeys(one.keys for one in methods.values())}
    values = {make: tuple(map(make, groups)) for make in dict.fromkeys(one.values for one in methods.values())}
    return {name: Merged(grouping, keys[one.keys], values[one.values]) for name, one in methods.items()}


def merged_attention(old: Attention, merged: Merged, read: dict[str, Tensor]) -> Attention:
    """The attention with merged heads; `old` itself if every head stays alone. `read` is its input, by split."""
    if merged.groups == tuple((head,) for head in range(old.k.shape[1])):
        return old
    return merged_weights(old, merged) if old.q_gain is None else merged_normalised(old, merged, read)


def refitted_outputs(
    new: Attention, read: dict[str, Tensor], streams: dict[str, Tensor], after: dict[str, Tensor]
) -> Attention:
    """`new` with output weights, and bias if it has one, by ridge regression towards their current values.

    The target is the difference between the donor's stream `after` its attention and the converted stream before it. `read` are
    the attended values of `new`.
    """

    def variables(split: str):
        for index in range(0, len(read[split]), 16):
            rows = slice(index, index + 16)
            heads = read[split][rows].transpose(1, 2).flatten(2).flatten(0, 1)
            if new.o_bias is not None:
                heads = torch.cat([heads, torch.ones_like(heads[:, :1])], 1)
            yield {"heads": heads, "target": (after[split][rows] - streams[split][rows]).flatten(0, 1)}

    products = [("heads", "heads"), ("heads", "target")]
    fit, held = (accumulate(variables(split), products, single={"heads", "target"}) for split in ("fit", "sweep"))
    prior = new.o.flatten(0, 1).double().to(read["fit"].device)
    if new.o_bias is not None:
        prior = torch.cat([prior, new.o_bias.to(prior)[None]])
    weight = ridge_towards(fit, held, prior, inputs="heads", target="target").weight
    bias = None if new.o_bias is None else weight[-1]
    return replace(new, o=weight[: new.o.shape[0] * new.o.shape[1]].view_as(new.o), o_bias=bias)


def _embedded(model: Model, ids: Tensor) -> Tensor:
    """The stream that enters the first block."""
    return torch.cat([residuals(model, part.long(), [0])[0] for part in ids.split(16)])
