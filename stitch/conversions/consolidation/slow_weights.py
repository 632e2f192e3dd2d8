"""Edits of the MLPs' down projections, and their cost on other text.

To second order and block by block (K-FAC, Martens & Grosse 2015), an edit ΔW_b of block b costs on other text

    ½ Σ_b tr(ΔW_bᵀ C_b ΔW_b G_b),   C_b = E[h hᵀ],   G_b = E[g gᵀ],

where h are the neurons and g the gradients of the log-probability of tokens that the model itself samples. In the coordinates
V_b = C_b^{1/2} ΔW_b G_b^{1/2} the cost is half the squared norm.
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
from stitch.progress import Progress, Steps, counted
from stitch.text.windows import Windows

Edit = dict[int, Float[Tensor, "neurons d"]]  # by block: the change of its down projection, for row vectors
Parameters = dict[str, Tensor]  # by name: values that replace parameters of a net

DAMPING = 0.1  # share of the mean variance that is added to every direction of C and G
CONDITION = 1e12  # condition number up to which a float64 solution has four digits
LARGEST = 4.0  # factor by which an edit is scaled, at most


def check_writable(model: Model) -> None:
    """Checks that all MLPs write to the residual stream directly, by a known projection, and all weights are finite.

    Raises UsageError for other MLPs, in any part of a composite, and StitchError for weights that are not finite.
    """
    for part in model.parts:
        if part.anatomy.mlp_out_norm is not None:
            fit = ", ".join(one.family for one in ANATOMIES.values() if one.mlp_out_norm is None)
            raise UsageError(
                f"MLPs must write to the residual stream directly to be edited; {part.anatomy.family} has a norm between them: "
                f"choose a model of {fit}."
            )
    for block in range(model.depth):
        model.down(block)
    for name, value in model.net.named_parameters():
        if not torch.isfinite(value).all():
            raise StitchError(f"the weights of {model.name} must be finite; {name} is not: download it again.")


def down_projection(model: Model, block: int) -> Float[Tensor, "neurons d"]:
    """The down projection of `block` for row vectors, a view of the model's parameter."""
    down: Any = model.down(block)
    weight = down.weight.detach()
    return weight.T if isinstance(down, nn.Linear) else weight  # GPT-2's Conv1D is stored that way


def edited_parameters(model: Model, edit: Edit, scale: float = 1.0) -> Parameters:
    """The edited weights, with the names and layout of the net's parameters."""
    names = {module: name for name, module in model.net.named_modules()}
    found = {}
    for block, change in edit.items():
        down, own = model.down(block), down_projection(model, block)
        changed = (own.float() + scale * change.to(own.device).float()).to(own.dtype)
        found[f"{names[down]}.weight"] = changed.T if isinstance(down, nn.Linear) else changed
    return found


@torch.no_grad()
def apply_edit(model: Model, edit: Edit, scale: float = 1.0) -> Parameters:
    """Adds the edit to the model's own weights, and returns those that it replaced."""
    own, replaced = dict(model.net.named_parameters()), {}
    for name, value in edited_parameters(model, edit, scale).items():
        replaced[name] = own[name].detach().clone()
        own[name].copy_(value)
    return replaced


def logits_with(
    model: Model, changed: Parameters, ids: Int[Tensor, "batch length"], **kwargs
) -> Float[Tensor, "batch kept vocabulary"]:
    """Logits of the model with the parameters `changed`. `kwargs` are passed to the model."""
    kwargs = {"input_ids": ids.to(model.device), "use_cache": False, **kwargs}
    return functional_call(model.net, changed, args=(), kwargs=kwargs).logits


@dataclass(frozen=True)
class Curvature:
    """C and G of every block on other text, float64 on the CPU."""

    neurons: dict[int, Float[Tensor, "neurons neurons"]]
    gradients: dict[int, Float[Tensor, "d d"]]


def measure_curvature(
    model: Model, windows: Windows, seed: int = 0, batch: int = 1024, progress: Progress | None = None
) -> Curvature:
    """C and G on `windows`, with about `batch` tokens per forward pass.

    Raises UsageError for fewer tokens than neurons: C would be singular, and edits in its null space would seem to cost nothing.
    """
    blocks = range(model.depth)
    widest = max(len(down_projection(model, block)) for block in blocks)
    if windows.tokens < widest:
        raise UsageError(
            f"tokens must be at least the number of neurons, {widest:,}, for a covariance; got {windows.tokens:,}: raise it."
        )
    neurons: dict[int, Any] = dict.fromkeys(blocks, 0.0)
    widths = [down_projection(model, block).shape[1] for block in blocks]
    gradients: dict[int, Any] = {b: torch.zeros(width, width, dtype=torch.float64) for b, width in enumerate(widths)}
    # Added to every down projection's output, so that gradients flow there although all parameters are frozen.
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
        parts = windows.ids.long().split(max(1, batch // windows.context))
        for ids in counted(parts, "curvature (batches)", progress):
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
    """ΔW = left V right. The gradient with respect to V is left ∇ right; half the squared norm of V is the cost."""

    left: dict[int, Float[Tensor, "neurons neurons"]]
    right: dict[int, Float[Tensor, "d d"]]

    def edit(self, point: Edit) -> Edit:
        return {block: self.left[block] @ one @ self.right[block] for block, one in point.items()}


def coordinates(
    curvature: Curvature, model: Model, damping: float = DAMPING, progress: Progress | None = None
) -> Coordinates:
    """Coordinates from the damped C and G. Raises UsageError if their widths are not the model's."""
    for block in range(model.depth):
        width = tuple(down_projection(model, block).shape)
        got = len(curvature.neurons[block]), len(curvature.gradients[block])
        if got != width:
            raise UsageError(
                f"covariances of block {block} must be of its {width[0]} neurons and width {width[1]}; got {got[0]} and "
                f"{got[1]}: measure them on this model."
            )
    step = Steps("coordinates (matrices)", 2 * model.depth, progress)

    def root(covariance: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
        found = inverse_root(covariance, damping).float().to(model.device)
        step()
        return found

    return Coordinates(
        {b: root(m) for b, m in curvature.neurons.items()}, {b: root(m) for b, m in curvature.gradients.items()}
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

    This is ΔWᵀ = R Kᵀ(λC + KKᵀ)⁻¹ of MEMIT (Meng et al. 2022) with tokens as rows. With strength 0 it is the ΔW of least norm
    with keys ΔW = wanted, for which the keys must be linearly independent.
    Raises UsageError for a covariance of another width, a negative strength and dependent keys at strength 0; StitchError for a
    system that is too ill-conditioned for float64.
    """
    keys, wanted, retain = keys.double(), wanted.double(), retain.double().to(keys.device)
    tokens, width = keys.shape
    if tuple(retain.shape) != (width, width):
        raise UsageError(
            f"covariance must be of the keys' width, {width}; got {len(retain)}: measure it on this model."
        )
    if not strength >= 0:
        raise UsageError(f"strength must be 0 or more; got {strength}.")
    if strength == 0:
        if (rank := int(torch.linalg.matrix_rank(keys))) < tokens:
            raise UsageError(
                f"keys must be linearly independent at strength 0; got {tokens} of rank {rank}: take fewer or raise `strength`."
            )
        return torch.linalg.pinv(keys) @ wanted
    system = keys.T @ keys / tokens + strength * retain
    if not (condition := float(torch.linalg.cond(system))) < CONDITION:
        raise StitchError(
            f"covariance must give a system with a condition below {CONDITION:.0e}; got {condition:.0e}: measure it on more "
            "text, or raise `strength`."
        )
    return torch.linalg.solve(system, keys.T @ wanted / tokens)


def edit_norm(edit: Edit) -> float:
    """Frobenius norm over all blocks."""
    return math.sqrt(sum(float(change.double().square().sum()) for change in edit.values()))


def scale_to_cost(
    cost_of: Callable[[float], float], budget: float, *, start: float = 1.0, within: float = 0.05, tries: int = 7
) -> float:
    """The largest tried factor with which an edit costs at most `budget` (above 0). At most LARGEST; 0 if none was found.

    The search begins with `start` and ends when the cost is within a share `within` of the budget, or after `tries` tries. The
    cost is modelled as a power of the factor: 2 at first, then the exponent given by the last two tries. If the next guess is
    outside the bracket, its midpoint is tried.
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
                exponent = math.log(cost / last[1]) / math.log(scale / last[0])
                power = exponent if 0.5 < exponent < 8 else power
            last = (scale, cost)
        guess = scale * ((1 - within / 2) * budget / max(cost, budget / 30)) ** (1 / power)
        is_between = fits < guess < too_far
        scale = min(guess if is_between else (fits + min(too_far, 2 * LARGEST)) / 2, LARGEST)
    return fits
