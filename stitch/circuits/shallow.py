"""A model rearranged into fewer blocks: the first blocks become a table of token vectors, and later blocks are merged into groups
whose components read the same stream.

This loses what merged components would have read of each other's outputs, and what the first blocks compute from more than the
current token. Nothing is trained: the tables and the outputs of left-out components are means.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stitch.circuits.behaviours.prompts import Prompts
from stitch.circuits.components import Components, Place
from stitch.circuits.reads import RIDGE, ReadMap
from stitch.internals import weights
from stitch.internals.forward import head_outputs, neuron_outputs, with_gain, written_by_heads, written_by_neurons
from stitch.internals.weights import Spot
from stitch.models.model import Model
from stitch.progress import Progress
from stitch.text.tokenizers import bos_of

CONTEXT, BEFORE = 64, 8  # a random context: tokens that enter the means, and tokens between BOS and those
SAMPLES = 4  # random contexts of each token
AT_ONCE = 16  # prompts per forward pass


@dataclass(frozen=True)
class TokenTables:
    """Mean residual streams of tokens in random contexts, by the block that they enter, without learned positions.

    BOS always comes first, so its stream is no mean. `rows` gives each token's row in the tables, −1 for tokens without one.
    """

    rows: Int64[Tensor, " vocabulary"]
    before: Mapping[int, Float[Tensor, "tokens d"]]

    def look_up(self, block: int, ids: Int64[Tensor, "prompts length"]) -> Float[Tensor, "prompts length d"]:
        return self.before[block][self.rows[ids]]


@torch.no_grad()
def token_tables(
    model: Model, tokens: Int64[Tensor, " tokens"], blocks: set[int], seed: int = 0, progress: Progress | None = None
) -> TokenTables:
    """Tables for these `tokens` before these `blocks`; every token is seen in `SAMPLES` random contexts of the others."""
    generator, bos = torch.Generator().manual_seed(seed), bos_of(model.tokenizer)
    vocabulary = len(model.embedding.weight)
    tokens = tokens[tokens != bos]
    sums = {block: torch.zeros(len(tokens) + 1, model.width) for block in blocks}  # in float32, also of a bf16 model
    counts = torch.zeros(len(tokens))
    windows = -(-len(tokens) // CONTEXT)
    for sample in range(SAMPLES):
        order = torch.randperm(len(tokens), generator=generator)
        padding = torch.randint(len(tokens), (windows * CONTEXT - len(tokens),), generator=generator)
        index = torch.cat([order, padding]).view(windows, CONTEXT)
        others = tokens[torch.randint(len(tokens), (windows, BEFORE), generator=generator)]
        ids = torch.cat([torch.full((windows, 1), bos), others, tokens[index]], 1)
        for part, numbers in zip(ids.split(AT_ONCE), index.split(AT_ONCE), strict=True):
            for block, x in _streams(model, part, max(blocks)):
                if block in sums:
                    sums[block].index_add_(0, numbers.flatten(), x[:, 1 + BEFORE :].flatten(0, 1).float().cpu())
            counts.index_add_(0, numbers.flatten(), torch.ones(numbers.numel()))
        if progress:
            progress("tables of tokens (samples)", sample + 1, SAMPLES)
    for block, x in _streams(model, torch.tensor([[bos]]), max(blocks)):
        if block in sums:
            sums[block][:-1] /= counts[:, None]
            sums[block][-1] = x[0, 0].float().cpu()
    rows = torch.full((vocabulary,), -1)
    rows[tokens], rows[bos] = torch.arange(len(tokens)), len(tokens)
    return TokenTables(rows, {block: table.to(model.dtype) for block, table in sums.items()})


def _streams(model: Model, ids: Tensor, last: int) -> Iterator[tuple[int, Tensor]]:
    """Every block up to `last` with the stream that enters it, less the learned positions."""
    x, table = model.embedding(ids.to(model.device)), weights.positions(model)
    positions = 0 if table is None else table[: ids.shape[1]]
    x = x + positions
    for block in range(last + 1):
        yield block, x - positions
        if block < last:
            x = x + _attention(model, block, head_outputs(model, block, _direction(model, ("attention", block), x)))
            x = x + _mlp(model, block, neuron_outputs(model, block, _direction(model, ("mlp", block), x)))


@dataclass(frozen=True)
class Arrangement:
    """How a model's blocks are rearranged.

    Blocks before `first` are replaced by a table of tokens. The others are in `groups`: all heads of a group read one stream,
    then all its MLPs read one. Heads of the blocks in `beside`, which are before `first`, join the first group and read tables
    of their own.
    """

    first: int
    beside: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]

    @classmethod
    def whole(cls, model: Model) -> "Arrangement":
        """The model as it is: one block per group."""
        return cls(0, (), tuple((block,) for block in range(model.depth)))

    @property
    def layers(self) -> dict[int, int]:
        """The number of the group of every block that has heads or neurons in one."""
        return dict.fromkeys(self.beside, 0) | {
            block: number for number, group in enumerate(self.groups) for block in group
        }

    def merged(self, number: int) -> "Arrangement":
        """This group and the next become one."""
        before, after = self.groups[:number], self.groups[number + 2 :]
        return replace(self, groups=(*before, self.groups[number] + self.groups[number + 1], *after))

    def folded(self, keep_heads: bool) -> "Arrangement":
        """The first group goes into the table; `keep_heads` puts its heads beside the next one."""
        folded, rest = self.groups[0], self.groups[1:]
        return Arrangement(rest[0][0], (*self.beside, *(folded if keep_heads else ())), rest)

    @classmethod
    def from_dict(cls, values: dict) -> "Arrangement":
        """The inverse of `to_dict`. Raises ValueError unless the blocks are in order, each once."""
        groups = tuple(tuple(map(int, group)) for group in values["blocks"])
        first, beside = int(values["table"]), tuple(map(int, values["beside"]))
        blocks = [block for group in groups for block in group]
        if blocks != list(range(first, first + len(blocks))) or not set(beside) <= set(range(first)):
            raise ValueError(
                f"blocks must come in order from {first} on, those beside them before; got {groups}, {beside}"
            )
        return cls(first, beside, groups)

    def to_dict(self) -> dict:
        """As graft.json has it."""
        return {"table": self.first, "beside": list(self.beside), "blocks": [list(group) for group in self.groups]}


@dataclass(frozen=True)
class ShallowModel:
    """A `model` whose blocks are rearranged.

    Components that are not `kept` give their `means`. Heads beside the first group add only what differs from their mean, which
    is in the table already. `reads` maps the normalised stream at a spot to what its components read in the whole model; heads
    beside the first group that have no such map read tables of their own.
    """

    model: Model
    arrangement: Arrangement
    tables: TokenTables
    kept: Components | None = None
    means: Mapping[Place, Float[Tensor, "1 1 columns"]] = field(default_factory=dict)
    reads: Mapping[Spot, ReadMap] = field(default_factory=dict)

    def inputs(self, ids: Int64[Tensor, "prompts length"]) -> dict[int, Float[Tensor, "prompts length d"]]:
        """The streams from tables, by block: for the first group, and for heads beside it that read their own."""
        own = [block for block in self.arrangement.beside if ("attention", block) not in self.reads]
        return {block: self.from_table(block, ids) for block in (self.arrangement.first, *own)}

    def from_table(self, block: int, ids: Int64[Tensor, "prompts length"]) -> Float[Tensor, "prompts length d"]:
        """The stream that enters a block according to its table, with learned positions added."""
        table = weights.positions(self.model)
        return self.tables.look_up(block, ids).to(self.model.device) + (0 if table is None else table[: ids.shape[1]])

    def read(self, spot: Spot, x: Float[Tensor, "*prompts d"]) -> Float[Tensor, "*prompts d"]:
        """The normalised stream at a spot, mapped to what its components read where `reads` has a map."""
        direction = _direction(self.model, spot, x)
        return self.reads[spot].apply(direction) if spot in self.reads else direction

    def run(
        self,
        inputs: Mapping[int, Float[Tensor, "prompts length d"]],
        seen: dict[Place, Tensor] | None = None,
        streams: dict[Spot, Tensor] | None = None,
    ) -> Float[Tensor, "prompts length d"]:
        """The stream after the last group. `seen` is filled with the components' outputs, `streams` with the norms' inputs."""
        x = inputs[self.arrangement.first]
        for number in range(len(self.arrangement.groups)):
            x = x + self.attention(number, x, inputs, seen, streams)
            x = x + self.mlp(number, x, seen, streams)
        if streams is not None:
            streams["final", 0] = x
        return x

    def attention(
        self,
        number: int,
        x: Float[Tensor, "prompts length d"],
        inputs: Mapping[int, Float[Tensor, "prompts length d"]],
        seen: dict[Place, Tensor] | None = None,
        streams: dict[Spot, Tensor] | None = None,
    ) -> Float[Tensor, "prompts length d"]:
        """The sum of what all heads of a group write, the biases of their output projections included."""
        written = torch.zeros_like(x)
        for block in self.arrangement.beside if number == 0 else ():
            stream = inputs.get(block, x)
            if streams is not None:
                streams["attention", block] = stream
            outputs = head_outputs(self.model, block, self.read(("attention", block), stream))
            outputs, mean = self._ablated(("heads", block), outputs, seen), self.means.get(("heads", block))
            mean = outputs.detach()[:, 1:].mean((0, 1)) if mean is None else mean.to(outputs.dtype)
            written = written + written_by_heads(self.model, block, outputs - mean)
        for block in self.arrangement.groups[number]:
            if streams is not None:
                streams["attention", block] = x
            outputs = head_outputs(self.model, block, self.read(("attention", block), x))
            written = written + _attention(self.model, block, self._ablated(("heads", block), outputs, seen))
        return written

    def mlp(
        self,
        number: int,
        x: Float[Tensor, "prompts length d"],
        seen: dict[Place, Tensor] | None = None,
        streams: dict[Spot, Tensor] | None = None,
    ) -> Float[Tensor, "prompts length d"]:
        """The sum of what all MLPs of a group write."""
        written = torch.zeros_like(x)
        for block in self.arrangement.groups[number]:
            if streams is not None:
                streams["mlp", block] = x
            outputs = neuron_outputs(self.model, block, self.read(("mlp", block), x))
            written = written + _mlp(self.model, block, self._ablated(("neurons", block), outputs, seen))
        return written

    def _ablated(self, place: Place, outputs: Tensor, seen: dict[Place, Tensor] | None) -> Tensor:
        """The outputs of a block's heads or neurons, those that are not kept replaced by their means. `seen` gets the
        originals."""
        if seen is not None:
            seen[place] = outputs
        if self.kept is None or place not in self.means:
            return outputs
        mask = self.kept.masks[place].to(outputs.device)
        mask = mask.repeat_interleave(outputs.shape[-1] // len(mask))
        return torch.where(mask, outputs, self.means[place].to(outputs.dtype))

    def last(self, x: Float[Tensor, "*prompts d"]) -> Float[Tensor, "*prompts vocabulary"]:
        """The logits for a stream after the last group."""
        return self.model.head(with_gain(weights.norm(self.model, "final"), self.read(("final", 0), x)))

    def logits(self, ids: Int64[Tensor, "prompts length"]) -> Float[Tensor, "prompts length vocabulary"]:
        """On the CPU."""
        return self.last(self.run(self.inputs(ids))).cpu()

    @torch.no_grad()
    def mean_outputs(self, prompts: Prompts) -> dict[Place, Float[Tensor, "1 1 columns"]]:
        """The components' mean outputs over the corrupt prompts and all positions except that of BOS."""
        totals: dict[Place, Tensor] = {}
        for part in prompts.corrupt.split(AT_ONCE):
            seen: dict[Place, Tensor] = {}
            self.run(self.inputs(part), seen)
            for place, output in seen.items():
                totals[place] = totals.get(place, 0) + output[:, 1:].mean(1, keepdim=True).sum(0, keepdim=True)
        return {place: total / len(prompts.corrupt) for place, total in totals.items()}

    @torch.no_grad()
    def streams(self, ids: Int64[Tensor, "prompts length"]) -> dict[Spot, Float[Tensor, "prompts length d"]]:
        """The inputs of all norms; float64 on the CPU."""
        streams: dict[Spot, Tensor] = {}
        self.run(self.inputs(ids), streams=streams)
        return {spot: stream.double().cpu() for spot, stream in streams.items()}


@torch.no_grad()
def with_reads(
    model: Model,
    arrangement: Arrangement,
    tables: TokenTables,
    prompts: Prompts,
    ridge: float = RIDGE,
    progress: Progress | None = None,
) -> ShallowModel:
    """The rearranged model with `reads` for all spots, fitted by ridge regression on the clean and the corrupt prompts.

    Each map predicts what components read in the whole model from the stream that they find here. Spots are fitted in the order
    in which the model computes them, each with all earlier maps in place. Only the table of the arrangement's first block is
    used.
    """
    shallow = ShallowModel(model, arrangement, tables)
    ids = torch.cat([prompts.clean, prompts.corrupt])
    targets = _normalised_streams(model, ids, min((arrangement.first, *arrangement.beside)))
    x = torch.cat([shallow.from_table(arrangement.first, part) for part in ids.split(AT_ONCE)])
    for number, group in enumerate(arrangement.groups):
        for stage in ("attention", "mlp"):
            blocks = (*arrangement.beside, *group) if (number, stage) == (0, "attention") else group
            spots = [(stage, block) for block in blocks]
            shallow = replace(shallow, reads={**shallow.reads, **_fitted(model, spots, x, targets, ridge)})
            if stage == "attention":
                written = [shallow.attention(number, part, {}) for part in x.split(AT_ONCE)]
            else:
                written = [shallow.mlp(number, part) for part in x.split(AT_ONCE)]
            x = x + torch.cat(written)
        if progress:
            progress("reads (blocks)", number + 1, len(arrangement.groups))
    return replace(shallow, reads={**shallow.reads, **_fitted(model, [("final", 0)], x, targets, ridge)})


def _fitted(
    model: Model, spots: list[Spot], x: Tensor, targets: Mapping[Spot, Tensor], ridge: float
) -> dict[Spot, ReadMap]:
    return {spot: ReadMap.fitted(_direction(model, spot, x), targets[spot], ridge) for spot in spots}


def _normalised_streams(model: Model, ids: Tensor, first: int) -> dict[Spot, Tensor]:
    """The stream in the whole model after every norm from block `first` on, without gain and bias."""
    seen: dict[Spot, list[Tensor]] = {}

    def normalised(spot: Spot, x: Tensor) -> Tensor:
        direction = _direction(model, spot, x)
        if spot[1] >= first or spot[0] == "final":
            seen.setdefault(spot, []).append(direction)
        return direction

    table = weights.positions(model)
    for part in ids.split(AT_ONCE):
        x = model.embedding(part.to(model.device)) + (0 if table is None else table[: ids.shape[1]])
        for block in range(model.depth):
            x = x + _attention(model, block, head_outputs(model, block, normalised(("attention", block), x)))
            x = x + _mlp(model, block, neuron_outputs(model, block, normalised(("mlp", block), x)))
        normalised(("final", 0), x)
    return {spot: torch.cat(parts) for spot, parts in seen.items()}


def _direction(model: Model, spot: Spot, x: Tensor) -> Tensor:
    return weights.norm(model, *spot).direction(x)


def _attention(model: Model, block: int, outputs: Tensor) -> Tensor:
    """What a block's attention adds to the stream, given its heads' outputs."""
    bias = weights.attention(model, block).o_bias
    return written_by_heads(model, block, outputs) if bias is None else written_by_heads(model, block, outputs) + bias


def _mlp(model: Model, block: int, outputs: Tensor) -> Tensor:
    """What a block's MLP adds to the stream, given its neurons' outputs."""
    bias = weights.mlp(model, block).down_bias
    return (
        written_by_neurons(model, block, outputs) if bias is None else written_by_neurons(model, block, outputs) + bias
    )
