"""Writes a blueprint into the weights of a blank model, stage by stage."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stitch.errors import StitchError, UsageError
from stitch.grafts.norm_inputs import norm_inputs
from stitch.internals import weights
from stitch.models.model import Model
from stitch.synthesis.blueprint import Blueprint, LookUp, Neurons, Select, balanced_signs, bits_for, sharp
from stitch.synthesis.layout import Layout
from stitch.synthesis.rope_heads import HEAD, STILL, plane_head

STEEP = (
    40.0  # factor on pre-activations, which are ±1/2 or more away from the threshold: SiLU(±20) is 20 and 0 within 1e-7
)
MARGIN = 10.0  # logit of the answer minus the highest other logit, without rounding errors
EQUAL = 1e-3  # largest relative difference between norms of streams at one stage


@torch.no_grad()
def write(model: Model, blueprint: Blueprint, layout: Layout) -> None:
    """Fills in all weights. A norm can be measured only when all stages before it have been written.

    Raises: UsageError for heads that the architecture cannot implement, StitchError when norms at one stage differ.
    """
    writer = WeightWriter(model, blueprint, layout)
    writer.embedding()
    everywhere = torch.ones_like(blueprint.asked)
    for block, part in enumerate(blueprint.blocks):
        if layout.heads[block]:
            gain = writer.gain("attention", block, everywhere)
            for number, head in enumerate(layout.heads[block]):
                writer.head(block, number, head, gain)
        if part.neurons is not None:
            writer.neurons(block, part.neurons, writer.gain("mlp", block, blueprint.asked))
    writer.unembedding(writer.gain("final", 0, blueprint.asked))


class WeightWriter:
    """Writes one stage of a blueprint at a time. `gain` is always the factor of the norm that the stage reads through."""

    def __init__(self, model: Model, blueprint: Blueprint, layout: Layout) -> None:
        self.model, self.blueprint, self.layout = model, blueprint, layout
        self.d = blueprint.embedding.shape[1]

    def gain(self, stage: str, block: int, where: Bool[Tensor, "prompts positions"]) -> float:
        """The factor of a norm, measured on the specimens; it must be the same at all positions `where`.

        Raises: StitchError where it differs.
        """
        spot = (stage, block)
        x = norm_inputs(self.model, [spot], self.blueprint.specimens)[spot][where]
        gains = weights.norm(self.model, stage, block).direction(x).norm(dim=1) / x.norm(dim=1)
        low, high = float(gains.min()), float(gains.max())
        if high > (1 + EQUAL) * low:
            raise StitchError(
                f"residual streams at {stage} {block} must have equal norms; the norm's factors are {low:.4g} to {high:.4g}."
            )
        return (low + high) / 2

    def wide(self, reads: Float[Tensor, "d n"]) -> Float[Tensor, "width n"]:
        """Columns that read the blueprint's stream as columns that read the model's."""
        return torch.cat([reads, reads.new_zeros(self.layout.width - self.d, reads.shape[1])])

    def written(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n width"]:
        """Rows of the blueprint's stream as rows of the model's, with mean 0 where there is an absorber."""
        wide = self.wide(rows.T).T.contiguous()
        if self.layout.absorber is not None:
            wide[:, self.layout.absorber] = -rows.sum(1)
        return wide

    def embedding(self) -> None:
        rows = self.written(self.blueprint.embedding)
        if self.layout.first is not None and self.layout.later is not None:
            rows[0, self.layout.first] = 1.0
            rows[1:, self.layout.later] = 1.0
        self.model.embedding.weight.copy_(rows)
        table = weights.positions(self.model)
        if table is not None:
            if self.blueprint.positions is not None:
                table.copy_(self.written(self.blueprint.positions))
            for target, start in self.layout.codes:
                code = balanced_signs(target, bits_for(self.blueprint.length))
                table[:, start : start + code.shape[1]] = code.float()

    def head(self, block: int, number: int, head: Select | LookUp, gain: float) -> None:
        attention = weights.attention(self.model, block)
        if isinstance(head, LookUp):
            self._look_up(attention, number, head, gain)
        elif self.layout.codes:
            self._select_by_code(attention, number, head, gain)
        else:
            self._select_by_plane(attention, number, head, gain)
        size = len(head.source)
        attention.v[head.source, number, torch.arange(size)] = 1 / gain
        into = torch.zeros(size, self.d, dtype=torch.float64)
        into[torch.arange(size), head.into] = 1.0
        attention.o[number, :size] = self.written(into).float()

    def _look_up(self, attention: weights.Attention, number: int, head: LookUp, gain: float) -> None:
        dimensions = self._content_dimensions(head.query.shape[1])
        assert attention.q_bias is not None
        attention.q[:, number, dimensions] = (self.wide(head.query) / gain / attention.scale).float()
        attention.q_bias[number, dimensions] = (head.query_bias / attention.scale).float()
        attention.k[:, number, dimensions] = (self.wide(head.key) / gain).float()

    def _content_dimensions(self, rank: int) -> Tensor:
        """Dimensions of a head that hold contents; with RoPE, those of the planes that rotate least."""
        if not weights.is_rotary(self.model):
            return torch.arange(rank)
        angles = weights.frequencies(self.model) * self.blueprint.length
        still = (angles < STILL).nonzero()[:, 0].flip(0)
        dimensions = torch.cat([still, still + HEAD // 2])[:rank]
        if len(dimensions) < rank:
            raise UsageError(
                f"heads must compare {rank} numbers over {self.blueprint.length:,} tokens; {2 * len(still)} dimensions rotate "
                "little enough. Compile for a shorter context."
            )
        return dimensions

    def _select_by_code(self, attention: weights.Attention, number: int, head: Select, gain: float) -> None:
        size = (sharp(2.0, self.blueprint.length) / attention.scale) ** 0.5 / gain
        (target_code,) = (start for target, start in self.layout.codes if torch.equal(target, head.target))
        own_code = self.layout.codes[0][1]
        bit = torch.arange(bits_for(self.blueprint.length))
        attention.q[target_code + bit, number, bit] = size
        attention.k[own_code + bit, number, bit] = size

    def _select_by_plane(self, attention: weights.Attention, number: int, head: Select, gain: float) -> None:
        offset = head.offset
        if offset is None:
            raise UsageError(
                "RoPE encodes distances, so targets must be a fixed number of tokens back; they are not. Compile for gpt2."
            )
        planes = plane_head(offset, self.blueprint.length)
        clamped = offset > 1  # with an offset of 1, the first token can attend only to itself
        units = sharp(planes.gap / 2 if clamped else planes.gap, self.blueprint.length) / attention.scale
        amplitude, phase = (units * planes.weights).sqrt(), offset * planes.frequencies
        assert attention.q_bias is not None and attention.k_bias is not None
        attention.q_bias[number] = torch.cat([amplitude * phase.cos(), -amplitude * phase.sin()]).float()
        attention.k_bias[number] = torch.cat([amplitude, 0 * amplitude]).float()
        if clamped:
            slowest = HEAD // 2 - 1
            sink = (units * (1 - planes.gap / 2)) ** 0.5
            attention.q_bias[number, slowest] = sink
            attention.k[self.layout.first, number] = -attention.k_bias[number] / gain
            attention.k[self.layout.first, number, slowest] = sink / gain

    def neurons(self, block: int, neurons: Neurons, gain: float) -> None:
        mlp, count = weights.mlp(self.model, block), len(neurons.write)
        gated = mlp.gate is not None
        read, bias = (mlp.gate, mlp.gate_bias) if gated else (mlp.up, mlp.up_bias)
        assert read is not None and bias is not None
        read[:, :count] = (STEEP * self.wide(neurons.read) / gain).float()
        bias[:count] = (-STEEP * neurons.threshold).float()
        if gated:
            assert mlp.up_bias is not None
            mlp.up_bias[:count] = 1.0
        mlp.down[:count] = (self.written(neurons.write) / STEEP).float()

    def unembedding(self, gain: float) -> None:
        size = MARGIN / (1 - self.blueprint.crosstalk) / gain
        weights.unembedding(self.model).copy_(size * self.wide(self.blueprint.unembedding))
