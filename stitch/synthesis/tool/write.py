"""Writes a tool into the lanes, heads and neurons that were added to a host."""

import torch
from jaxtyping import Int64
from torch import Tensor

from stitch.grafts.allocation import FreeSpace
from stitch.grafts.norm_inputs import norm_inputs
from stitch.internals import weights
from stitch.models.model import Model
from stitch.synthesis.blueprint import sharp, signs
from stitch.synthesis.tool.lanes import ABSORBERS, Lanes

STEEP = 20.0  # factor on the threshold of saturated neurons: GELU(±20) is 20 and 0
SLACK = 1.5  # factor by which norms may differ from those measured

Factors = dict[weights.Spot, tuple[float, float]]
"""The smallest and the largest factor of a norm, without its gain."""


@torch.no_grad()
def norm_factors(host: Model, blocks: int, text: Int64[Tensor, "rows length"]) -> Factors:
    """The factors of the norms of the first `blocks` blocks on `text`, widened by `SLACK` in both directions."""
    spots: list[weights.Spot] = [(stage, block) for block in range(blocks) for stage in ("attention", "mlp")]
    found = {}
    for spot, x in norm_inputs(host, spots, text).items():
        x = x - x.mean(-1, keepdim=True)
        factors = (x.square().mean(-1) + weights.norm(host, *spot).eps).rsqrt()
        found[spot] = float(factors.min()) / SLACK, float(factors.max()) * SLACK
    return found


class ToolWriter:
    """Writes one stage at a time. A lane that holds something has the value `size`."""

    def __init__(
        self, wide: Model, free: FreeSpace, lanes: Lanes, factors: Factors, faint: float, host_width: int
    ) -> None:
        self.wide, self.lanes, self.shape, self.factors = wide, lanes, lanes.shape, factors
        self.group, self.neuron = free.groups[0], free.neurons[0]
        nonzero = self.shape.most_nonzero
        held = nonzero + nonzero**2 / ABSORBERS
        self.size = faint * (host_width / held) ** 0.5 / max(high for _, high in factors.values())

    def embedding(self, steps: Int64[Tensor, "vocabulary states"]) -> None:
        every = torch.arange(self.shape.states)
        first_windows = self.lanes.windows[0][every, steps]
        self.wide.embedding.weight += self.size * self.lanes.writing[first_windows].sum(1).float()

    def positions(self) -> None:
        """The constant, the position of every token, and the positions that heads look for."""
        table, lanes, bits = weights.positions(self.wide), self.lanes, self.shape.bits
        assert table is not None
        position = torch.arange(len(table))
        rows = lanes.writing[lanes.constant] + signs(position, bits) @ lanes.writing[lanes.position]
        for (block, back), target in lanes.targets.items():
            sought = (position - back * self.shape.windows**block).clamp_min(0)
            rows = rows + signs(sought, bits) @ lanes.writing[target]
        table += self.size * rows.float()

    def heads(self, block: int) -> None:
        """Scores are the product of two position codes minus their length, scaled: 0 at the target, at most −2 elsewhere."""
        attention, lanes, bits = weights.attention(self.wide, block), self.lanes, self.shape.bits
        low, high = self.factors["attention", block]
        amount = (sharp(2.0, self.wide.longest) / attention.scale) ** 0.5 / (self.size * low)
        window = lanes.windows[block].flatten()
        constant = lanes.reading[lanes.constant][0].float()
        for back in range(1, self.shape.windows):
            head, fetched = self.group + back - 1, lanes.fetched[block, back].flatten()
            attention.q[:, head, :bits] = amount * lanes.reading[lanes.targets[block, back]].T.float()
            attention.k[:, head, :bits] = amount * lanes.reading[lanes.position].T.float()
            attention.q[:, head, bits] = amount * constant
            attention.k[:, head, bits] = -bits * amount * constant
            attention.v[:, head, : len(window)] = lanes.reading[window].T.float() / (low * high) ** 0.5
            attention.o[head, : len(window)] = lanes.writing[fetched].float()

    def neurons(self, block: int) -> None:
        """A transition q → u for every path from q to u, unless one of the earlier windows takes another path.

        Two neurons for every path saturate their difference between 0 and `size`.
        """
        paths = torch.cartesian_prod(*[torch.arange(self.shape.states)] * (self.shape.windows + 1))
        new = self.lanes.windows[block + 1][paths[:, 0], paths[:, -1]]
        pre, count = self._conditions(block, paths), len(paths)
        mlp = weights.mlp(self.wide, block)
        assert mlp.up_bias is not None
        for first, threshold, sign in ((self.neuron, 0.0, 1), (self.neuron + count, 1.0, -1)):
            mlp.up[:, first : first + count] = STEEP * pre.T.float()
            mlp.up_bias[first : first + count] = -STEEP * threshold
            mlp.down[first : first + count] = sign * self.size / STEEP * self.lanes.writing[new].float()

    def _conditions(self, block: int, paths: Int64[Tensor, "paths states"]) -> Tensor:
        """Vectors [paths, d] whose product with the stream is 2 or more for the path that is taken, otherwise 0 or less."""
        lanes, earlier = self.lanes, self.shape.windows - 1
        against = torch.zeros(len(paths), self.wide.width, dtype=torch.float64)
        for number in range(earlier):  # the earliest window is the farthest back
            fetched = lanes.reading[lanes.fetched[block, earlier - number]]
            start, end = paths[:, number], paths[:, number + 1]
            against += fetched[start].sum(1) - fetched[start, end]
        own = lanes.windows[block][paths[:, -2], paths[:, -1]]
        low, high = self.factors["attention", block]
        inhibition = 2 * (high / low) ** 0.5  # enough even for a fetched lane that the norm made smallest
        pre = lanes.reading[own] - lanes.reading[lanes.constant] / 2 - inhibition * against
        return 4 * pre / (self.size * self.factors["mlp", block][0])
