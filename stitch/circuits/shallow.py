"""A model rearranged into fewer blocks: its first ones become a table of tokens, others read their inputs side by side.

What is lost is what components of the same block would have read of each other, and of early blocks whatever depends on more than
the token. Nothing is trained: tables and what stands in for left-out components are means.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stitch.circuits.behaviours import Prompts
from stitch.circuits.components import Components, Place
from stitch.circuits.reads import RIDGE, ReadMap
from stitch.internals import weights
from stitch.internals.forward import head_outputs, neuron_outputs, with_gain, written_by_heads, written_by_neurons
from stitch.models.model import Model
from stitch.progress import Progress
from stitch.text.tokenizers import bos_of

CONTEXT, BEFORE = 64, 8  # tokens of a random context that count for their means, and others between BOS and them
SAMPLES = 4  # contexts of each token
AT_ONCE = 16

Spot = tuple[str, int]


@dataclass(frozen=True)
class TokenTables:
    """The mean stream of tokens in random contexts, before each of some blocks; of BOS, which comes first, the only one there is.

    Without what learned positions add. `rows` says where in a table a token is.
    """

    rows: Int64[Tensor, " vocabulary"]
    before: Mapping[int, Float[Tensor, "tokens d"]]

    def of(self, block: int, ids: Int64[Tensor, "prompts length"]) -> Float[Tensor, "prompts length d"]:
        return self.before[block][self.rows[ids]]


@torch.no_grad()
def token_tables(
    model: Model, tokens: Int64[Tensor, " tokens"], blocks: set[int], seed: int = 0, progress: Progress | None = None
) -> TokenTables:
    """For these tokens, each in `SAMPLES` contexts of the others."""
    generator, bos = torch.Generator().manual_seed(seed), bos_of(model.tokenizer)
    vocabulary = len(model.embedding.weight)
    tokens = tokens[tokens != bos]
    sums = {block: torch.zeros(len(tokens) + 1, model.width, dtype=model.dtype) for block in blocks}
    counts = torch.zeros(len(tokens), dtype=model.dtype)
    windows = -(-len(tokens) // CONTEXT)
    for sample in range(SAMPLES):
        order = torch.randperm(len(tokens), generator=generator)
        again = torch.randint(len(tokens), (windows * CONTEXT - len(tokens),), generator=generator)
        index = torch.cat([order, again]).view(windows, CONTEXT)
        others = tokens[torch.randint(len(tokens), (windows, BEFORE), generator=generator)]
        ids = torch.cat([torch.full((windows, 1), bos), others, tokens[index]], 1)
        for part, where in zip(ids.split(AT_ONCE), index.split(AT_ONCE), strict=True):
            for block, x in _streams(model, part, max(blocks)):
                if block in sums:
                    sums[block].index_add_(0, where.flatten(), x[:, 1 + BEFORE :].flatten(0, 1).cpu())
            counts.index_add_(0, where.flatten(), torch.ones(where.numel(), dtype=model.dtype))
        if progress:
            progress("tables of tokens (samples)", sample + 1, SAMPLES)
    for block, x in _streams(model, torch.tensor([[bos]]), max(blocks)):
        if block in sums:
            sums[block][:-1] /= counts[:, None]
            sums[block][-1] = x[0, 0].cpu()
    rows = torch.full((vocabulary,), -1)
    rows[tokens], rows[bos] = torch.arange(len(tokens)), len(tokens)
    return TokenTables(rows, sums)


def _streams(model: Model, ids: Tensor, last: int):
    """The stream before each block up to `last`, less what positions add."""
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
    """Blocks before `first` are a table of tokens. Heads of those in `beside` read tables of their own, in the first of the
    `groups`; these are the other blocks, the attention of each group on one stream, then the MLPs on one."""

    first: int
    beside: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]

    @classmethod
    def whole(cls, model: Model) -> "Arrangement":
        return cls(0, (), tuple((block,) for block in range(model.depth)))

    @property
    def layers(self) -> dict[int, int]:
        """The group of every block that is not in the table alone."""
        return dict.fromkeys(self.beside, 0) | {
            block: number for number, group in enumerate(self.groups) for block in group
        }

    def merged(self, number: int) -> "Arrangement":
        """With this group and the next as one."""
        before, after = self.groups[:number], self.groups[number + 2 :]
        return replace(self, groups=(*before, self.groups[number] + self.groups[number + 1], *after))

    def folded(self, heads: bool) -> "Arrangement":
        """With the first group in the table; its heads beside the next."""
        gone, rest = self.groups[0], self.groups[1:]
        return Arrangement(rest[0][0], (*self.beside, *(gone if heads else ())), rest)

    @classmethod
    def from_dict(cls, found: dict) -> "Arrangement":
        """Of what `to_dict` gives. Raises ValueError unless blocks come in order, each once."""
        groups = tuple(tuple(map(int, group)) for group in found["blocks"])
        first, beside = int(found["table"]), tuple(map(int, found["beside"]))
        blocks = [block for group in groups for block in group]
        if blocks != list(range(first, first + len(blocks))) or not set(beside) <= set(range(first)):
            raise ValueError(
                f"blocks must come in order from {first} on, those beside them before; got {groups}, {beside}"
            )
        return cls(first, beside, groups)

    def to_dict(self) -> dict:
        return {"table": self.first, "beside": list(self.beside), "blocks": [list(group) for group in self.groups]}


@dataclass(frozen=True)
class ShallowModel:
    """A `model` so arranged. Components that are not `kept` give `means`; those beside others, nothing, as their mean is in the
    table already. Components read what `reads` makes of the stream, if it says; else those beside others read tables."""

    model: Model
    arrangement: Arrangement
    tables: TokenTables
    kept: Components | None = None
    means: Mapping[Place, Float[Tensor, "1 1 columns"]] = field(default_factory=dict)
    reads: Mapping[Spot, ReadMap] = field(default_factory=dict)

    def inputs(self, ids: Int64[Tensor, "prompts length"]) -> dict[int, Float[Tensor, "prompts length d"]]:
        """By block: the stream from a table, for the first group and for heads beside it that read their own."""
        own = [block for block in self.arrangement.beside if ("attention", block) not in self.reads]
        return {block: self.from_table(block, ids) for block in (self.arrangement.first, *own)}

    def from_table(self, block: int, ids: Int64[Tensor, "prompts length"]) -> Float[Tensor, "prompts length d"]:
        table = weights.positions(self.model)
        return self.tables.of(block, ids).to(self.model.device) + (0 if table is None else table[: ids.shape[1]])

    def read(self, spot: Spot, x: Float[Tensor, "*prompts d"]) -> Float[Tensor, "*prompts d"]:
        """What the norm there makes of the stream, as its components need it."""
        found = _direction(self.model, spot, x)
        return self.reads[spot].of(found) if spot in self.reads else found

    def run(
        self,
        inputs: Mapping[int, Float[Tensor, "prompts length d"]],
        seen: dict[Place, Tensor] | None = None,
        streams: dict[Spot, Tensor] | None = None,
    ) -> Float[Tensor, "prompts length d"]:
        """The last stream. `seen` gets what components give, `streams` what norms read."""
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
        """What all heads of a group write."""
        written = torch.zeros_like(x)
        for block in self.arrangement.beside if number == 0 else ():
            stream = inputs.get(block, x)
            if streams is not None:
                streams["attention", block] = stream
            own = head_outputs(self.model, block, self.read(("attention", block), stream))
            found, mean = self._given(("heads", block), own, seen), self.means.get(("heads", block))
            usual = found.detach()[:, 1:].mean((0, 1)) if mean is None else mean.to(found.dtype)
            written = written + written_by_heads(self.model, block, found - usual)
        for block in self.arrangement.groups[number]:
            if streams is not None:
                streams["attention", block] = x
            own = head_outputs(self.model, block, self.read(("attention", block), x))
            written = written + _attention(self.model, block, self._given(("heads", block), own, seen))
        return written

    def mlp(
        self,
        number: int,
        x: Float[Tensor, "prompts length d"],
        seen: dict[Place, Tensor] | None = None,
        streams: dict[Spot, Tensor] | None = None,
    ) -> Float[Tensor, "prompts length d"]:
        """What all neurons of a group write."""
        written = torch.zeros_like(x)
        for block in self.arrangement.groups[number]:
            if streams is not None:
                streams["mlp", block] = x
            own = neuron_outputs(self.model, block, self.read(("mlp", block), x))
            written = written + _mlp(self.model, block, self._given(("neurons", block), own, seen))
        return written

    def _given(self, place: Place, own: Tensor, seen: dict[Place, Tensor] | None) -> Tensor:
        if seen is not None:
            seen[place] = own
        if self.kept is None or place not in self.means:
            return own
        mask = self.kept.masks[place].to(own.device)
        return torch.where(mask.repeat_interleave(own.shape[-1] // len(mask)), own, self.means[place].to(own.dtype))

    def last(self, x: Float[Tensor, "*prompts d"]) -> Float[Tensor, "*prompts vocabulary"]:
        """Logits of the last stream."""
        return self.model.head(with_gain(weights.norm(self.model, "final"), self.read(("final", 0), x)))

    def logits(self, ids: Int64[Tensor, "prompts length"]) -> Float[Tensor, "prompts length vocabulary"]:
        return self.last(self.run(self.inputs(ids))).cpu()

    @torch.no_grad()
    def mean_outputs(self, of: Prompts) -> dict[Place, Float[Tensor, "1 1 columns"]]:
        """Over the corrupt prompts, at all positions but that of BOS, which is like no other."""
        totals: dict[Place, Tensor] = {}
        for part in of.corrupt.split(AT_ONCE):
            seen: dict[Place, Tensor] = {}
            self.run(self.inputs(part), seen)
            for place, output in seen.items():
                totals[place] = totals.get(place, 0) + output[:, 1:].mean(1, keepdim=True).sum(0, keepdim=True)
        return {place: total / len(of.corrupt) for place, total in totals.items()}

    @torch.no_grad()
    def streams(self, ids: Int64[Tensor, "prompts length"]) -> dict[Spot, Float[Tensor, "prompts length d"]]:
        """What norms read."""
        found: dict[Spot, Tensor] = {}
        self.run(self.inputs(ids), streams=found)
        return {spot: stream.double().cpu() for spot, stream in found.items()}


@torch.no_grad()
def with_reads(
    model: Model,
    arrangement: Arrangement,
    known: TokenTables,
    of: Prompts,
    ridge: float = RIDGE,
    progress: Progress | None = None,
) -> ShallowModel:
    """With reads fitted in order, one after the other, on the prompts and their corrupt ones: what each component reads in the
    whole model from what it finds in the arrangement. Tables of blocks beside others are not needed."""
    shallow = ShallowModel(model, arrangement, known)
    ids = torch.cat([of.clean, of.corrupt])
    truth = _truth(model, ids, min((arrangement.first, *arrangement.beside)))
    x = torch.cat([shallow.from_table(arrangement.first, part) for part in ids.split(AT_ONCE)])
    for number, group in enumerate(arrangement.groups):
        for stage in ("attention", "mlp"):
            blocks = (*arrangement.beside, *group) if (number, stage) == (0, "attention") else group
            spots = [(stage, block) for block in blocks]
            shallow = replace(shallow, reads={**shallow.reads, **_fitted(model, spots, x, truth, ridge)})
            if stage == "attention":
                written = [shallow.attention(number, part, {}) for part in x.split(AT_ONCE)]
            else:
                written = [shallow.mlp(number, part) for part in x.split(AT_ONCE)]
            x = x + torch.cat(written)
        if progress:
            progress("reads (blocks)", number + 1, len(arrangement.groups))
    return replace(shallow, reads={**shallow.reads, **_fitted(model, [("final", 0)], x, truth, ridge)})


def _fitted(
    model: Model, spots: list[Spot], x: Tensor, truth: Mapping[Spot, Tensor], ridge: float
) -> dict[Spot, ReadMap]:
    return {spot: ReadMap.fitted(_direction(model, spot, x), truth[spot], ridge) for spot in spots}


def _truth(model: Model, ids: Tensor, first: int) -> dict[Spot, Tensor]:
    """What norms make of the stream in the whole model, from a block on."""
    found: dict[Spot, list[Tensor]] = {}

    def kept(spot: Spot, x: Tensor) -> Tensor:
        direction = _direction(model, spot, x)
        if spot[1] >= first or spot[0] == "final":
            found.setdefault(spot, []).append(direction)
        return direction

    table = weights.positions(model)
    for part in ids.split(AT_ONCE):
        x = model.embedding(part.to(model.device)) + (0 if table is None else table[: ids.shape[1]])
        for block in range(model.depth):
            x = x + _attention(model, block, head_outputs(model, block, kept(("attention", block), x)))
            x = x + _mlp(model, block, neuron_outputs(model, block, kept(("mlp", block), x)))
        kept(("final", 0), x)
    return {spot: torch.cat(parts) for spot, parts in found.items()}


def _direction(model: Model, spot: Spot, x: Tensor) -> Tensor:
    return weights.norm(model, *spot).direction(x)


def _attention(model: Model, block: int, given: Tensor) -> Tensor:
    bias = weights.attention(model, block).o_bias
    return written_by_heads(model, block, given) if bias is None else written_by_heads(model, block, given) + bias


def _mlp(model: Model, block: int, given: Tensor) -> Tensor:
    bias = weights.mlp(model, block).down_bias
    return written_by_neurons(model, block, given) if bias is None else written_by_neurons(model, block, given) + bias
