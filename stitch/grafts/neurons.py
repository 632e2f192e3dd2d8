"""A donor's MLP neurons as neurons of another architecture: copied, or made of others where the activation is another."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from stitch.circuits.reads import ReadMap
from stitch.internals.weights import Mlp, Norm

SHARPNESS = 1.702  # GELU(x) is silu(1.702 x) / 1.702 within 0.021
UNITS, DRAWN = 8, 200  # GELU neurons in the place of a gated one, and how many they are chosen from
STEP = 0.1  # of a feature's usual size: over how much of what it reads its jump is spread
EDGE = 8.0  # of the argument of GELU or SiLU, over which those are as good as zero or the identity


@dataclass(frozen=True)
class Neurons:
    """Maps of the donor's normalised stream, its norm's gain and bias folded in; `gate` is None where there is none.

    `constant` is what they write in any case. With `threshold`s they are features: what is above is written, what is below not.
    """

    gate: Float[Tensor, "d neurons"] | None
    gate_bias: Float[Tensor, " neurons"] | None
    up: Float[Tensor, "d neurons"]
    up_bias: Float[Tensor, " neurons"]
    down: Float[Tensor, "neurons d"]
    constant: Float[Tensor, " d"]
    threshold: Float[Tensor, " neurons"] | None = None

    def __len__(self) -> int:
        return len(self.down)


def of_donor(mlp: Mlp, norm: Norm, mask: Bool[Tensor, " neurons"]) -> Neurons:
    """Those of the `mask`, in float64."""

    def read(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        columns = weight[:, mask].double().cpu()
        total = torch.zeros(columns.shape[1], dtype=torch.float64) if bias is None else bias[mask].double().cpu()
        if norm.bias is not None:
            total = total + norm.bias.double().cpu() @ columns
        return norm.gain.double().cpu()[:, None] * columns, total

    gate, gate_bias = (None, None) if mlp.gate is None else read(mlp.gate, mlp.gate_bias)
    up, up_bias = read(mlp.up, mlp.up_bias)
    down = mlp.down[mask].double().cpu()
    threshold = None if mlp.threshold is None else mlp.threshold[mask].double().cpu()
    return Neurons(gate, gate_bias, up, up_bias, down, down.new_zeros(down.shape[1]), threshold)


def reading(neurons: Neurons, through: ReadMap) -> Neurons:
    """The neurons on x that are `neurons` on what `through` makes of x."""
    weight, shift = through.weight.double().cpu(), through.shift.double().cpu()
    gate, gate_bias = neurons.gate, neurons.gate_bias
    if gate is not None and gate_bias is not None:
        gate, gate_bias = weight @ gate, gate_bias + shift @ gate
    return replace(
        neurons, gate=gate, gate_bias=gate_bias, up=weight @ neurons.up, up_bias=neurons.up_bias + shift @ neurons.up
    )


def written(
    neurons: Neurons, x: Float[Tensor, "rows d"], activation: Literal["gelu", "silu", "jumprelu"]
) -> Float[Tensor, "rows d"]:
    """What they add to the stream."""
    up = x @ neurons.up + neurons.up_bias
    if activation == "jumprelu":
        assert neurons.threshold is not None
        return up.relu() * (up > neurons.threshold) @ neurons.down + neurons.constant
    act = {"gelu": torch.nn.functional.gelu, "silu": torch.nn.functional.silu}[activation]
    if neurons.gate is None or neurons.gate_bias is None:
        return act(up) @ neurons.down + neurons.constant
    inner = act(x @ neurons.gate + neurons.gate_bias) * up
    return inner @ neurons.down + neurons.constant


def gated(neurons: Neurons) -> Neurons:
    """GELU neurons as gated SiLU ones whose other factor is constant."""
    constant = torch.full_like(neurons.up_bias, 1 / SHARPNESS)
    still = torch.zeros_like(neurons.up)
    return Neurons(
        SHARPNESS * neurons.up, SHARPNESS * neurons.up_bias, still, constant, neurons.down, neurons.constant
    )  # fmt: skip


def ungated(neurons: Neurons, x: Float[Tensor, "rows d"]) -> Neurons:
    """Each gated SiLU neuron as `UNITS` GELU ones that read its two inputs, chosen among `DRAWN` by its values on `x`.

    Source: orthogonal matching pursuit, Pati, Rezaiifar & Krishnaprasad 1993.
    """
    assert neurons.gate is not None and neurons.gate_bias is not None
    generator = torch.Generator().manual_seed(0)
    angle = 2 * torch.pi * torch.rand(DRAWN, generator=generator, dtype=x.dtype)
    sharp = 3 ** (2 * torch.rand(DRAWN, generator=generator, dtype=x.dtype) - 0.5)
    bend = sharp * torch.randn(DRAWN, generator=generator, dtype=x.dtype)
    gates, ups = x @ neurons.gate + neurons.gate_bias, x @ neurons.up + neurons.up_bias
    sizes = [values.square().mean(0).sqrt().clamp_min(1e-12) for values in (gates, ups)]
    mixes = [sharp * turn / size[:, None] for turn, size in zip((angle.cos(), angle.sin()), sizes, strict=True)]
    reads, biases, writes, constant = [], [], [], neurons.constant
    for number in range(len(neurons)):
        of_gate, of_up = mixes[0][number], mixes[1][number]
        goal = torch.nn.functional.silu(gates[:, number]) * ups[:, number]
        drawn = torch.outer(gates[:, number], of_gate) + torch.outer(ups[:, number], of_up) - bend
        chosen, sizes_chosen, rest = _pursuit(torch.nn.functional.gelu(drawn), goal, UNITS)
        of_gate, of_up = of_gate[chosen], of_up[chosen]
        reads.append(torch.outer(neurons.gate[:, number], of_gate) + torch.outer(neurons.up[:, number], of_up))
        biases.append(neurons.gate_bias[number] * of_gate + neurons.up_bias[number] * of_up - bend[chosen])
        writes.append(torch.outer(sizes_chosen, neurons.down[number]))
        constant = constant + rest * neurons.down[number]
    return Neurons(None, None, torch.cat(reads, 1), torch.cat(biases), torch.cat(writes), constant)


def units(theirs: Mlp, ours: Mlp) -> int:
    """How many neurons of a host one of the donor's takes."""
    if theirs.threshold is not None:
        return 2 if bool(theirs.threshold.any()) else 1
    return UNITS if theirs.gate is not None and ours.gate is None else 1


def stepped(features: Neurons, x: Float[Tensor, "rows d"], *, gated: bool) -> Neurons:
    """Each feature as two neurons of GELU hosts, or of `gated` SiLU ones whose other factor is constant: JumpReLU is
    (1 + a/ε) relu(z − a) − a/ε relu(z − a − ε) but for z between a and a + ε, where its threshold is in the middle, and relu(z)
    is act(s z) / s at a large s. ε is `STEP` of the feature's usual size on `x`. Where all thresholds are 0, one is enough.
    """
    assert features.threshold is not None
    reads = x @ features.up + features.up_bias
    active = reads * (reads > features.threshold)
    usual = (active.square().sum(0) / (active > 0).sum(0).clamp_min(1)).sqrt()
    usual = torch.where(usual > 0, usual, features.threshold.clamp_min(reads.abs().mean()))
    jump = STEP * usual  # ε
    edges, shares = [features.threshold], [torch.ones_like(jump)]
    if features.threshold.any():
        edge = (features.threshold - jump / 2).clamp_min(0)
        edges, shares = [edge, edge + jump], [1 + edge / jump, -edge / jump]
    count, slope = len(edges), (EDGE / jump).repeat(len(edges))
    up = features.up.repeat(1, count) * slope
    bias = torch.cat([features.up_bias - edge for edge in edges]) * slope
    down = torch.cat([share[:, None] * features.down for share in shares])
    if gated:
        return Neurons(up, bias, torch.zeros_like(up), 1 / slope, down, features.constant)
    return Neurons(None, None, up, bias, down / slope[:, None], features.constant)


def _pursuit(
    columns: Float[Tensor, "rows columns"], goal: Float[Tensor, " rows"], count: int
) -> tuple[Int64[Tensor, " count"], Float[Tensor, " count"], float]:
    """Which columns add up to the goal, how often each, and a constant: one after the other, that which explains most."""
    one = torch.ones_like(columns[:, :1])
    rest, left, chosen = columns - columns.mean(0), goal - goal.mean(), []
    lengths = rest.norm(dim=0).clamp_min(1e-12)
    for _ in range(count):
        remaining = rest.norm(dim=0)
        new = remaining > 1e-6 * lengths
        best = int(torch.where(new, (rest.T @ left).abs() / remaining.clamp_min(1e-12), 0.0).argmax())
        chosen.append(best)
        direction = rest[:, best] / remaining[best].clamp_min(1e-12)
        left = left - direction * (direction @ left)
        rest = rest - torch.outer(direction, direction @ rest)
    design = torch.cat([columns[:, chosen], one], 1)
    square = design.T @ design
    square += 1e-10 * square.diagonal().mean() * torch.eye(len(square), dtype=square.dtype)
    found = torch.linalg.solve(square, design.T @ goal)
    return torch.tensor(chosen), found[:-1], float(found[-1])


def unexplained(goal: Float[Tensor, "rows d"], found: Float[Tensor, "rows d"]) -> float:
    """Share of the goal's variance that is not in what was found."""
    return float((goal - found).square().sum() / (goal - goal.mean(0)).square().sum().clamp_min(1e-30))
