"""A donor's MLP neurons as neurons of another architecture: copied, or approximated where the activation function differs."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from stitch.circuits.reads import ReadMap
from stitch.internals.weights import Mlp, Norm

SHARPNESS = 1.702  # GELU(x) is silu(1.702 x) / 1.702 within 0.021
UNITS, DRAWN = 8, 200  # GELU neurons that replace a gated one, and the random candidates they are chosen from
STEP = 0.1  # width of the ramp that replaces a feature's jump, relative to its usual activation
EDGE = 8.0  # beyond arguments of ±8, GELU and SiLU are close to the identity and to zero


@dataclass(frozen=True)
class Neurons:
    """Maps of the donor's normalised stream, with its norm's gain and bias folded in; float64. `gate` is None for plain MLPs.

    `constant` is written for every token. Features have a `threshold`: activations above it are written, others are not.
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


def donor_neurons(mlp: Mlp, norm: Norm, mask: Bool[Tensor, " neurons"]) -> Neurons:
    """The donor's neurons in the `mask`."""

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
    """The neurons that compute from x what `neurons` compute from `through` applied to x."""
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
    """What the neurons add to the stream when they read `x`."""
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
    """GELU neurons as gated SiLU neurons with a constant up projection."""
    up, up_bias = torch.zeros_like(neurons.up), torch.full_like(neurons.up_bias, 1 / SHARPNESS)
    return Neurons(SHARPNESS * neurons.up, SHARPNESS * neurons.up_bias, up, up_bias, neurons.down, neurons.constant)


def ungated(neurons: Neurons, x: Float[Tensor, "rows d"]) -> Neurons:
    """Each gated SiLU neuron as `UNITS` GELU neurons that read random combinations of its gate and up projection.

    They are chosen among `DRAWN` candidates by orthogonal matching pursuit on the neuron's activations for the rows of `x`.
    Source: Pati, Rezaiifar & Krishnaprasad 1993.
    """
    assert neurons.gate is not None and neurons.gate_bias is not None
    generator = torch.Generator().manual_seed(0)
    # Candidate c reads slope_c (cos α_c gate / size of gates + sin α_c up / size of ups) − offset_c.
    angle = 2 * torch.pi * torch.rand(DRAWN, generator=generator, dtype=x.dtype)
    slope = 3 ** (2 * torch.rand(DRAWN, generator=generator, dtype=x.dtype) - 0.5)
    offset = slope * torch.randn(DRAWN, generator=generator, dtype=x.dtype)
    gates, ups = x @ neurons.gate + neurons.gate_bias, x @ neurons.up + neurons.up_bias
    gate_sizes, up_sizes = (values.square().mean(0).sqrt().clamp_min(1e-12) for values in (gates, ups))
    gate_shares, up_shares = slope * angle.cos() / gate_sizes[:, None], slope * angle.sin() / up_sizes[:, None]
    reads, biases, writes, constant = [], [], [], neurons.constant
    for number in range(len(neurons)):
        of_gate, of_up = gate_shares[number], up_shares[number]
        goal = torch.nn.functional.silu(gates[:, number]) * ups[:, number]
        candidates = torch.outer(gates[:, number], of_gate) + torch.outer(ups[:, number], of_up) - offset
        chosen, factors, rest = _pursuit(torch.nn.functional.gelu(candidates), goal, UNITS)
        of_gate, of_up = of_gate[chosen], of_up[chosen]
        reads.append(torch.outer(neurons.gate[:, number], of_gate) + torch.outer(neurons.up[:, number], of_up))
        biases.append(neurons.gate_bias[number] * of_gate + neurons.up_bias[number] * of_up - offset[chosen])
        writes.append(torch.outer(factors, neurons.down[number]))
        constant = constant + rest * neurons.down[number]
    return Neurons(None, None, torch.cat(reads, 1), torch.cat(biases), torch.cat(writes), constant)


def units(donor: Mlp, host: Mlp) -> int:
    """The number of host neurons that replace one neuron of the donor."""
    if donor.threshold is not None:
        return 2 if bool(donor.threshold.any()) else 1
    return UNITS if donor.gate is not None and host.gate is None else 1


def stepped(features: Neurons, x: Float[Tensor, "rows d"], *, gated: bool) -> Neurons:
    """Each feature as two GELU neurons, or two `gated` SiLU neurons with a constant up projection; as one if all thresholds are
    0.

    JumpReLU equals (1 + a/ε) relu(z − a) − a/ε relu(z − a − ε) except for z between a and a + ε, and the threshold is put in the
    middle of these. relu(z) is act(s z) / s for a large s. ε is `STEP` times the feature's root mean square on the rows of `x`
    where it is active.
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
    """Orthogonal matching pursuit: the `count` columns chosen one by one that explain most of the goal, their weights in a least
    squares fit, and its constant."""
    one = torch.ones_like(columns[:, :1])
    candidates, residual, chosen = columns - columns.mean(0), goal - goal.mean(), []
    lengths = candidates.norm(dim=0).clamp_min(1e-12)
    for _ in range(count):
        remaining = candidates.norm(dim=0)
        independent = remaining > 1e-6 * lengths  # of the columns that are chosen already
        gains = (candidates.T @ residual).abs() / remaining.clamp_min(1e-12)
        best = int(torch.where(independent, gains, 0.0).argmax())
        chosen.append(best)
        direction = candidates[:, best] / remaining[best].clamp_min(1e-12)
        residual = residual - direction * (direction @ residual)
        candidates = candidates - torch.outer(direction, direction @ candidates)
    design = torch.cat([columns[:, chosen], one], 1)
    square = design.T @ design
    square += 1e-10 * square.diagonal().mean() * torch.eye(len(square), dtype=square.dtype)
    solution = torch.linalg.solve(square, design.T @ goal)
    return torch.tensor(chosen), solution[:-1], float(solution[-1])


def unexplained(goal: Float[Tensor, "rows d"], approximation: Float[Tensor, "rows d"]) -> float:
    """The share of the goal's variance that an approximation does not explain."""
    return float((goal - approximation).square().sum() / (goal - goal.mean(0)).square().sum().clamp_min(1e-30))
