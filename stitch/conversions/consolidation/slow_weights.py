"""Edits of slow weights: what is added to the MLPs' down projections, in which coordinates, and what that costs other text.

The cost of an edit ΔW_b of block b on other text is, to second order and block by block (K-FAC, Martens & Grosse 2015),

    ½ Σ_b tr(ΔW_bᵀ C_b ΔW_b G_b),   C_b = E[h hᵀ],   G_b = E[g gᵀ],

h the neurons, g the gradients of the log-probability of tokens that the model itself draws. Coordinates in which the cost is
half the squared length are V_b = C_b^{1/2} ΔW_b G_b^{1/2}.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from stitch.errors import StitchError, UsageError
from stitch.models.anatomy import ANATOMIES
from stitch.models.model import Model
from stitch.text.windows import Windows

Edit = dict[int, Float[Tensor, "neurons d"]]  # by block: what is added to its down projection, for row vectors
Parameters = dict[str, Tensor]  # of a net, by name, in place of its own

DAMPING = 0.1  # of the mean variance, added to every direction of C and G
CONDITION = 1e12  # of a system in float64 that leaves four digits
LARGEST = 4.0  # factor by which an edit is scaled to a cost


def check_writable(model: Model) -> None:
    """Raises UsageError unless MLPs write to the stream directly, in a composite those of every part; StitchError for NaN."""
    for part in model.parts:
        if part.anatomy.mlp_out_norm is not None:
            fit = ", ".join(one.family for one in ANATOMIES.values() if one.mlp_out_norm is None)
            raise UsageError(
                f"a memory needs an MLP that writes to the residual stream directly; {part.anatomy.family} has a norm between "
                f"them: choose a model of {fit}."
            )
    for name, value in model.net.named_parameters():
        if not torch.isfinite(value).all():
            raise StitchError(f"the weights of {model.name} must be finite; {name} is not: download it again.")


def down_projection(model: Model, block: int) -> Float[Tensor, "neurons d"]:
    """The down projection of `block` for row vectors: a view of the model's own."""
    down: Any = model.down(block)
    weight = down.weight.detach()
    return weight.T if isinstance(down, nn.Linear) else weight  # GPT-2's Conv1D is stored that way


def edited_parameters(model: Model, edit: Edit, scale: float = 1.0) -> Parameters:
    """The edited weights as the net names and stores them."""
    names = {module: name for name, module in model.net.named_modules()}
    found = {}
    for block, change in edit.items():
        down, own = model.down(block), down_projection(model, block)
        changed = (own.float() + scale * change.to(own.device).float()).to(own.dtype)
        found[f"{names[down]}.weight"] = changed.T if isinstance(down, nn.Linear) else changed
    return found


@torch.no_grad()
def apply_edit(model: Model, edit: Edit, scale: float = 1.0) -> None:
    """Adds the edit to the model's own weights."""
    own = dict(model.net.named_parameters())
    for name, value in edited_parameters(model, edit, scale).items():
        own[name].copy_(value)


def logits_with(
    model: Model, changed: Parameters, ids: Int[Tensor, "batch length"], **kwargs
) -> Float[Tensor, "batch kept vocabulary"]:
    """Logits of the model with `changed` in place of its own parameters."""
    kwargs = {"input_ids": ids.to(model.device), "use_cache": False, **kwargs}
    return functional_call(model.net, changed, args=(), kwargs=kwargs).logits


@dataclass(frozen=True)
class Curvature:
    """C and G of every block on other text, float64 on the CPU."""

    neurons: dict[int, Float[Tensor, "neurons neurons"]]
    gradients: dict[int, Float[Tensor, "d d"]]


def measure_curvature(model: Model, windows: Windows, seed: int = 0, batch: int = 1024) -> Curvature:
    """C and G on `windows`, about `batch` tokens at once.

    Raises UsageError where there are fewer tokens than neurons: C would have directions that cost nothing by accident.
    """
    blocks = range(model.depth)
    widest = max(len(down_projection(model, block)) for block in blocks)
    if windows.tokens < widest:
        raise UsageError(
            f"--tokens must be at least the number of neurons, {widest:,}, for a covariance; got {windows.tokens:,}: raise it."
        )
    neurons: dict[int, Any] = dict.fromkeys(blocks, 0.0)
    widths = [down_projection(model, block).shape[1] for block in blocks]
    gradients: dict[int, Any] = {b: torch.zeros(width, width, dtype=torch.float64) for b, width in enumerate(widths)}
    # Its gradient goes through every down projection, whichever parameters are frozen.
    leaf = torch.zeros((), dtype=model.dtype, device=model.device, requires_grad=True)
    generator = torch.Generator().manual_seed(seed)

    def moment(rows: Tensor) -> Tensor:
        flat = rows.detach().flatten(0, -2).cpu().double()
        return flat.T @ flat

    def hook(block: int) -> Callable:
        def read(_, inputs, output):
            neurons[block] += moment(inputs[0])
            output = output + leaf
            output.register_hook(lambda gradient: gradients.__setitem__(block, gradients[block] + moment(gradient)))
            return output

        return read

    hooks = [model.down(block).register_forward_hook(hook(block)) for block in blocks]
    try:
        for ids in windows.ids.long().split(max(1, batch // windows.context)):
            logits = model.net(input_ids=ids.to(model.device), use_cache=False).logits[:, :-1].flatten(0, 1).float()
            tokens = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=generator)[:, 0]
            loss = nn.functional.cross_entropy(logits, tokens.to(logits.device), reduction="sum")
            torch.autograd.grad(loss, leaf)
    finally:
        for one in hooks:
            one.remove()
    total = windows.tokens
    return Curvature({b: m / total for b, m in neurons.items()}, {b: m / total for b, m in gradients.items()})


@dataclass(frozen=True)
class Coordinates:
    """ΔW = left V right: V has the gradient left ∇ right, and half its squared length is the cost on other text."""

    left: dict[int, Float[Tensor, "neurons neurons"]]
    right: dict[int, Float[Tensor, "d d"]]

    def edit(self, point: Edit) -> Edit:
        return {block: self.left[block] @ one @ self.right[block] for block, one in point.items()}


def coordinates(curvature: Curvature, model: Model, damping: float = DAMPING) -> Coordinates:
    """Raises UsageError where C or G is not of the model's width."""
    for block in range(model.depth):
        width = tuple(down_projection(model, block).shape)
        got = len(curvature.neurons[block]), len(curvature.gradients[block])
        if got != width:
            raise UsageError(
                f"the covariances of block {block} must be of its {width[0]} neurons and width {width[1]}; got {got[0]} and "
                f"{got[1]}: measure them on this model."
            )
    device = model.device
    return Coordinates(
        {b: inverse_root(m, damping).float().to(device) for b, m in curvature.neurons.items()},
        {b: inverse_root(m, damping).float().to(device) for b, m in curvature.gradients.items()},
    )


def inverse_root(covariance: Float[Tensor, "d d"], damping: float) -> Float[Tensor, "d d"]:
    """(M + damping · mean variance · 1)^(−1/2)."""
    mean = covariance.diagonal().mean().clamp_min(1e-30)
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * (values.clamp_min(0) + damping * mean).rsqrt()) @ vectors.T


def ridge(
    keys: Float[Tensor, "tokens neurons"],
    wanted: Float[Tensor, "tokens d"],
    retain: Float[Tensor, "width width"],
    strength: float,
) -> Float[Tensor, "neurons d"]:
    """argmin_ΔW mean |keys ΔW − wanted|² + strength · tr(ΔWᵀ retain ΔW), in float64.

    This is ΔWᵀ = R Kᵀ(λC + KKᵀ)⁻¹ of MEMIT (Meng et al. 2022) with tokens as rows. Strength 0 asks for ΔW of least length with
    keys ΔW = wanted: the keys must then be independent. Raises UsageError for a covariance of another width and for more keys
    than their rank, StitchError for a system that float64 cannot solve.
    """
    keys, wanted, retain = keys.double(), wanted.double(), retain.double().to(keys.device)
    tokens, width = keys.shape
    if tuple(retain.shape) != (width, width):
        raise UsageError(
            f"the covariance must be of the keys' width, {width}; got {len(retain)}: measure it on this model."
        )
    if not strength >= 0:
        raise UsageError(f"the strength of a ridge must be 0 or more; got {strength}.")
    if strength == 0:
        if (rank := int(torch.linalg.matrix_rank(keys))) < tokens:
            raise UsageError(
                f"keys to be met exactly must be independent; got {tokens} of rank {rank}: take fewer or a strength above 0."
            )
        return torch.linalg.pinv(keys) @ wanted
    system = keys.T @ keys / tokens + strength * retain
    if not (condition := float(torch.linalg.cond(system))) < CONDITION:
        raise StitchError(
            f"the covariance must leave a system that float64 can solve, condition below {CONDITION:.0e}; got {condition:.0e}: "
            "measure it on more text, or damp it."
        )
    return torch.linalg.solve(system, keys.T @ wanted / tokens)


def edit_norm(edit: Edit) -> float:
    """The Frobenius norm over all blocks."""
    return math.sqrt(sum(float(change.double().square().sum()) for change in edit.values()))


def scale_to_cost(
    cost_of: Callable[[float], float], budget: float, *, start: float = 1.0, within: float = 0.05, tries: int = 7
) -> float:
    """The largest factor tried with which an edit costs at most `budget`, above 0; the search, which begins with `start`, ends
    `within` a share of it.

    A cost is taken for a power of the factor, at first its square, then the power that the last two tries show; where the guess
    leaves the bracket, its middle is tried. At most LARGEST: beyond it an edit is no longer what was fitted.
    """
    scale, fits, too_far, power = start, 0.0, math.inf, 2.0
    last: tuple[float, float] | None = None
    for _ in range(tries):
        cost = cost_of(scale)
        if cost <= budget:
            fits = max(fits, scale)
            if cost >= (1 - within) * budget or fits == LARGEST:
                break
        else:
            too_far = min(too_far, scale)
        if cost > 0:
            if last is not None and last[1] > 0 and scale != last[0]:
                shown = math.log(cost / last[1]) / math.log(scale / last[0])
                power = shown if 0.5 < shown < 8 else power
            last = (scale, cost)
        guess = scale * ((1 - within / 2) * budget / max(cost, budget / 30)) ** (1 / power)
        is_between = fits < guess < too_far
        scale = min(guess if is_between else (fits + min(too_far, 2 * LARGEST)) / 2, LARGEST)
    return fits
