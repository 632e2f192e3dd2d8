"""Block by block: the donor's stream beside that of every converted model, so that each refit sees what came before it."""

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
from stitch.conversions.heads.refine import UNIFORM, Rows, rows_of
from stitch.conversions.heads.seams import entering
from stitch.internals import weights
from stitch.internals.attend import Heads, heads_of, mixed, scores, stacked
from stitch.internals.weights import Attention
from stitch.models.model import Model
from stitch.progress import Progress
from stitch.regression.moments import accumulate
from stitch.regression.prior import ridge_towards

ROWS = 64  # of the attention per window, at least, that keys are refined on


@dataclass(frozen=True)
class Group:
    """What is known of the old key heads that become one."""

    keys: KeyMoments
    values: Float[Tensor, "stacked stacked"]  # second moment of what heads attend to
    output: Float[Tensor, "heads d width"]
    rows: Callable[[], Rows]  # of the attention itself; made when asked for, as they are large

    @property
    def head_of(self) -> tuple[int, ...]:
        return self.keys.head_of

    @property
    def old(self) -> int:
        return len(self.values) // self.output.shape[1]


@dataclass(frozen=True)
class Method:
    """How a group's heads become one; `refit` says whether the output weights are fitted again, block after block."""

    keys: Callable[[Group], Keys]
    values: Callable[[Group], Values]
    refit: bool


@dataclass(frozen=True)
class Moments:
    """Of one block's attention on the donor's stream: all old heads side by side, in float64.

    Keys that are linear functions of one another leave eigenvalues of zero. Products summed in float32 would make them 1e-7 of
    the largest, of either sign: far above the floor under which `contraction.square_roots` takes a direction for unused.
    """

    key_mean: Float[Tensor, " stacked"]
    key_covariance: Float[Tensor, "stacked stacked"]
    queries: Float[Tensor, "heads d d"]
    attended: Float[Tensor, "stacked stacked"]


def chunks(stream: Float[Tensor, "windows t width"], heads: int) -> Iterator[slice]:
    """Windows in groups whose attention takes about 64 MiB."""
    size = max(1, 2**26 // (4 * heads * stream.shape[1] ** 2))
    for start in range(0, len(stream), size):
        yield slice(start, min(start + size, len(stream)))


@torch.no_grad()
def block_moments(model: Model, block: int, stream: Float[Tensor, "windows t width"]) -> Moments:
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
    return Moments(
        mean,
        sums["keys"] / tokens - mean[:, None] * mean,
        sums["queries"] / tokens,
        sums["attended"] / tokens / (heads // groups) / groups,
    )


def normed(model: Model, block: int, stream: Tensor) -> Tensor:
    return weights.norm_module(model, "attention", block)(stream)


def group_of(
    model: Model, block: int, members: tuple[int, ...], moments: Moments, rows: Callable[[], Rows], context: int
) -> Group:
    attention = weights.attention(model, block)
    d = attention.q.shape[2]
    places = torch.cat([torch.arange(head * d, (head + 1) * d) for head in members])
    queries = query_heads(members, attention.shared)
    head_of = tuple(place for place in range(len(members)) for _ in range(attention.shared))
    keys = KeyMoments(
        moments.key_mean[places], moments.key_covariance[places][:, places], moments.queries[queries], head_of,
        weights.frequencies(model), context,
    )  # fmt: skip
    return Group(keys, moments.attended[places][:, places], attention.o.double().cpu()[queries], rows)


@torch.no_grad()
def attention_rows(
    model: Model,
    block: int,
    members: tuple[int, ...],
    stream: Float[Tensor, "windows t width"],
    seed: int,
    uniform: float = UNIFORM,
) -> Rows:
    """Of the group's query heads, `ROWS` per window of the donor's stream, more where it is long."""
    attention, theta = weights.attention(model, block), weights.frequencies(model)
    queries = query_heads(members, attention.shared)
    of = heads_of(attention, normed(model, block, stream))
    later = 1 + torch.randperm(stream.shape[1] - 1, generator=torch.Generator().manual_seed(seed))
    at = later[: max(ROWS, stream.shape[1] // 8)].sort().values.to(stream.device)
    q, own = of.q[:, queries][:, :, at], of.k[:, [head // attention.shared for head in queries]]
    wanted = scores(q, own, theta, attention.scale, at)
    return rows_of(q, stacked(of.k[:, list(members)]), wanted, theta, attention.scale, at, uniform)


@dataclass
class Track:
    """A model being converted: its streams so far on fit and held-out windows, earlier ones that a seam to come reads, and the
    attentions that it has got."""

    streams: dict[str, Float[Tensor, "windows t width"]]
    earlier: dict[str, dict[int, Tensor]]
    attentions: list[Attention] = field(default_factory=list)

    def enter(self, model: Model, block: int, ids: dict[str, Tensor]) -> None:
        self.streams = {
            split: entering(model, block, stream, ids[split], self.earlier[split])
            for split, stream in self.streams.items()
        }


@torch.no_grad()
def attention_output(
    model: Model, block: int, attention: Attention, stream: Float[Tensor, "windows t width"]
) -> Float[Tensor, "windows heads t d"]:
    theta = weights.frequencies(model)
    found = []
    for rows in chunks(stream, attention.q.shape[1]):
        of: Heads = heads_of(attention, normed(model, block, stream[rows]))
        found.append(mixed(scores(of.q, of.k, theta, attention.scale).softmax(-1), of.v))
    return torch.cat(found)


def written(attention: Attention, heads: Float[Tensor, "windows heads t d"]) -> Float[Tensor, "windows t width"]:
    out = torch.einsum("whtd,hdm->wtm", heads, attention.o.to(heads))
    return out if attention.o_bias is None else out + attention.o_bias.to(heads)


def after_mlp(model: Model, block: int, stream: Tensor) -> Tensor:
    return stream + model.blocks[block].get_submodule(model.anatomy.mlp)(
        weights.norm_module(model, "mlp", block)(stream)
    )


@torch.no_grad()
def convert(
    donor: Model,
    groups: Callable[[Model, int, Moments, int], Groups],
    methods: dict[str, Method],
    ids: dict[str, Tensor],
    *,
    sample: int,
    seed: int = 0,
    watch: Callable[[Model, int, list[Group], dict[str, Merged], Tensor], None] | None = None,
    progress: Progress | None = None,
) -> dict[str, list[Attention]]:
    """The attentions of every method, block by block.

    `ids` holds windows to fit on ("fit") and to choose λ on ("sweep"); of the former the first `sample` give the rows of the
    attention that keys are refined on. `groups` and `watch` get every block as its part of a composite and its number there;
    `watch` is shown its groups, what each method made of them, the held-out stream.
    """
    start = {split: _embedded(donor, windows) for split, windows in ids.items()}

    def track(has_streams: bool) -> Track:
        return Track(dict(start) if has_streams else {}, {split: {} for split in ids})

    own, tracks = track(True), {name: track(method.refit) for name, method in methods.items()}
    for number in range(donor.depth):
        model, block = donor.in_part(number)
        for one in (own, *tracks.values()):
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
        alone = tuple((head,) for head in range(old.k.shape[1]))
        outputs = {split: attention_output(model, block, old, stream) for split, stream in streams.items()}
        read = {split: normed(model, block, stream) for split, stream in streams.items()}
        after = {split: stream + written(old, outputs[split]) for split, stream in streams.items()}
        keys = {make: tuple(make(one) for one in found) for make in dict.fromkeys(one.keys for one in methods.values())}
        values = {
            make: tuple(make(one) for one in found) for make in dict.fromkeys(one.values for one in methods.values())
        }
        made = {name: Merged(grouping, keys[one.keys], values[one.values]) for name, one in methods.items()}
        if watch:
            watch(model, block, found, made, streams["sweep"])
        for name, method in methods.items():
            merged, converted = made[name], tracks[name]
            # Where nothing is merged, only the refit has something to do: the stream that reaches it has changed.
            if grouping == alone:
                new = old
            elif old.q_gain is None:
                new = merged_weights(old, merged)
            else:
                new = merged_normalised(old, merged, read)
            if method.refit:
                before = converted.streams
                given = {split: attention_output(model, block, new, stream) for split, stream in before.items()}
                new = refitted_outputs(new, given, before, after)
                converted.streams = {
                    split: after_mlp(model, block, stream + written(new, given[split]))
                    for split, stream in before.items()
                }
            converted.attentions.append(new.to(donor.dtype))  # solved in float64, of which a dozen methods take much
        own.streams = {split: after_mlp(model, block, stream) for split, stream in after.items()}
        if progress:
            progress("blocks", number + 1, donor.depth)
    return {name: track.attentions for name, track in tracks.items()}


def refitted_outputs(
    new: Attention, read: dict[str, Tensor], streams: dict[str, Tensor], after: dict[str, Tensor]
) -> Attention:
    """With output weights (and bias, where there is one) by ridge, towards what they are, that bring the converted stream where
    the donor's is after its attention."""

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
    """The stream entering the first block."""
    return torch.cat([residuals(model, part.long(), [0])[0] for part in ids.split(16)])
