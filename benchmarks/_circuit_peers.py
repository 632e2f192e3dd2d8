"""Other rankings of heads and neurons for `circuits.py`, written from the formulas of their papers.

Each gives a score per component by place, as `stitch.circuits.attribution.attribute` does: of the methods that read gradients or
patch, in nats per answer.

    attribution patching     change × gradient on the clean prompt (Nanda 2023; Syed et al., arXiv:2310.10348)
    EAP-IG, inputs           change × mean gradient at k/m of the way between the inputs, k = 1 … m (arXiv:2403.17806)
    EAP-IG, activations      the same between the outputs of a place, one place at a time, all else clean
    GIM                      attribution patching with another backward pass (arXiv:2505.17630): norms' scales constant,
                             attention's softmax differentiated at temperature 2, gradients of a product's factors halved
    GIM, … alone             attribution patching with one of these three changes
    activation patching      by how much the answers get less likely when a component has its corrupt output
    ours, few prompts        our ranking on the prompts that activation patching gets
    activation, weight norm  nulls that know no answers; the first reads the behaviour's clean prompts
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from stitch.circuits.attribution import STEPS, InputPath, Outputs, attribute, integrated
from stitch.circuits.behaviours.prompts import Prompts
from stitch.circuits.components import Components, Place, watched
from stitch.circuits.score import PROMPTS_AT_ONCE, TOKENS_AT_ONCE, logits_of, sums_of
from stitch.internals.attention import Attended, attending
from stitch.models.model import Model

Scores = dict[Place, Tensor]

TEMPERATURE = 2.0  # of the softmax in GIM's backward pass
FACTOR = 0.5  # GIM: of the gradient of each of two factors


@torch.no_grad()
def outputs_of(model: Model, ids: Tensor) -> Outputs:
    """The outputs of all components on these prompts."""
    with watched(model) as seen:
        model.net(input_ids=ids.to(model.device), use_cache=False)
    return dict(seen)


def attribution_patching(model: Model, prompts: Prompts) -> Scores:
    """The change of every output times its gradient on the clean prompt."""

    def path(part: slice) -> InputPath:
        corrupt = outputs_of(model, prompts.corrupt[part])
        clean: Outputs = {}

        def at(_: float) -> tuple[Outputs, Tensor]:
            embedded = model.embedding(prompts.clean[part].to(model.device)).detach().requires_grad_()
            with watched(model) as seen:
                logits = model.net(inputs_embeds=embedded, use_cache=False).logits
            clean.update({place: output.detach() for place, output in seen.items()})
            return dict(seen), logits[prompts.asked[part].to(model.device)]

        return clean, corrupt, at

    return integrated(model, prompts, path, steps=1)


def eap_ig_inputs(model: Model, prompts: Prompts, steps: int = STEPS) -> Scores:
    """As `attribute`, with gradients at the far end of each of `steps` parts of the way, where that takes their middles."""

    def path(part: slice) -> InputPath:
        clean, corrupt = (outputs_of(model, side[part]) for side in (prompts.clean, prompts.corrupt))
        with torch.no_grad():
            first, last = (model.embedding(side[part].to(model.device)) for side in (prompts.corrupt, prompts.clean))

        def at(middle: float) -> tuple[Outputs, Tensor]:
            between = first + (middle + 0.5 / steps) * (last - first)
            with watched(model) as seen:
                logits = model.net(inputs_embeds=between.requires_grad_(), use_cache=False).logits
            return dict(seen), logits[prompts.asked[part].to(model.device)]

        return clean, corrupt, at

    return integrated(model, prompts, path, steps)


def eap_ig_activations(model: Model, prompts: Prompts, steps: int = STEPS) -> Scores:
    """Integrated gradients between the corrupt and clean outputs of one place after another, on the clean prompts."""
    found: Scores = {}
    ends: dict[int, tuple[Outputs, Outputs]] = {}

    def path_of(place: Place, part: slice) -> InputPath:
        if part.start not in ends:
            ends[part.start] = tuple(outputs_of(model, side[part]) for side in (prompts.clean, prompts.corrupt))  # pyright: ignore[reportArgumentType]
        clean, corrupt = ends[part.start]

        def at(middle: float) -> tuple[Outputs, Tensor]:
            between = corrupt[place] + (middle + 0.5 / steps) * (clean[place] - corrupt[place])
            between.requires_grad_()
            ids = prompts.clean[part].to(model.device)
            with _put(model, place, lambda _: between):
                logits = model.net(input_ids=ids, use_cache=False).logits
            return {place: between}, logits[prompts.asked[part].to(model.device)]

        return clean, corrupt, at

    for place in Components.none(model).masks:
        found |= integrated(model, prompts, lambda part, place=place: path_of(place, part), steps)
    return found


def attribution_inside(*changes: Callable[[Model], AbstractContextManager]) -> Callable[[Model, Prompts], Scores]:
    """Attribution patching inside these changes of the backward pass."""

    def found(model: Model, prompts: Prompts) -> Scores:
        with ExitStack() as inside:
            for change in changes:
                inside.enter_context(change(model))
            return attribution_patching(model, prompts)

    return found


@contextmanager
def frozen_norms(model: Model) -> Iterator[None]:
    """Inside, the backward pass takes what norms divide by for constant. Values do not change."""

    def layer_norm(module: Any, args: tuple, _: Tensor) -> Tensor:
        centred = args[0] - args[0].mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + module.eps).rsqrt().detach()
        return centred * scale * module.weight + module.bias

    def rms_norm(module: Any, args: tuple, _: Tensor) -> Tensor:
        scale = (args[0].square().mean(-1, keepdim=True) + module.variance_epsilon).rsqrt().detach()
        return args[0] * scale * module.weight

    with ExitStack() as hooks:
        for module in model.net.modules():
            if isinstance(module, nn.LayerNorm):
                hooks.callback(module.register_forward_hook(layer_norm).remove)
            elif hasattr(module, "variance_epsilon"):
                hooks.callback(module.register_forward_hook(rms_norm).remove)
        yield


@contextmanager
def tempered(model: Model, temperature: float, factor: float) -> Iterator[None]:
    """Inside, attention's backward pass has its softmax at `temperature`, and `factor` times the gradients of the factors of both
    products: pattern and values, queries and keys. Values do not change."""

    def attend(seen: Attended) -> Tensor:
        # Both products come before the scores: the gradients of queries and keys are scaled twice.
        pattern = _Tempered.apply(_Scaled.apply(seen.pattern, factor), temperature)
        return _Scaled.apply(pattern, factor).to(seen.values) @ _Scaled.apply(seen.values, factor)

    with attending(model, attend):
        yield


@contextmanager
def divided_gates(model: Model, factor: float) -> Iterator[None]:
    """Inside, both factors of gated neurons get `factor` times their gradient."""
    with ExitStack() as hooks:
        for block in model.blocks:
            mlp = block.get_submodule(model.anatomy.mlp)
            for name in ("gate_proj", "up_proj"):
                if hasattr(mlp, name):
                    scaled = mlp.get_submodule(name).register_forward_hook(
                        lambda _, __, output: _Scaled.apply(output, factor)
                    )
                    hooks.callback(scaled.remove)
        yield


class _Scaled(torch.autograd.Function):
    """The same values, `factor` times the gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return ctx.factor * grad_outputs[0], None


class _Tempered(torch.autograd.Function):
    """The same probabilities p = softmax(s); s gets the gradient q (g − ⟨q, g⟩) with q = softmax(s / temperature).

    As that sums to 0, p must get it divided by p: the softmax before multiplies with p again.
    """

    @staticmethod
    def forward(ctx: Any, pattern: Tensor, temperature: float) -> Tensor:
        ctx.save_for_backward(pattern)
        ctx.temperature = temperature
        return pattern.view_as(pattern)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (pattern,), (gradient,) = ctx.saved_tensors, grad_outputs
        softer = pattern ** (1 / ctx.temperature)
        softer = softer / softer.sum(-1, keepdim=True)
        of_scores = softer * (gradient - (softer * gradient).sum(-1, keepdim=True))
        return torch.where(pattern > 0, of_scores / pattern.clamp_min(1e-30), 0), None


@torch.no_grad()
def activation_patching(model: Model, prompts: Prompts) -> Scores:
    """The nats per answer lost when one component has its output on the corrupt prompt, the others as they follow from it.

    A pass takes several components at a time, all prompts once for each: they must be few enough for one pass.
    """
    count, length = prompts.clean.shape
    corrupt = outputs_of(model, prompts.corrupt)
    whole = sums_of(logits_of(model.net), prompts.clean, prompts, None)[:, 2].sum()
    at_once = TOKENS_AT_ONCE // (count * length)
    found: Scores = {}
    for place, mask in Components.none(model).masks.items():
        lost = torch.zeros(len(mask), dtype=torch.float64)
        for numbers in torch.arange(len(mask)).split(at_once):
            many = _repeated(prompts, len(numbers))
            chosen = torch.nn.functional.one_hot(numbers, len(mask)).bool()
            columns = chosen.repeat_interleave(corrupt[place].shape[-1] // len(mask), 1).repeat_interleave(count, 0)
            patched = partial(torch.where, columns[:, None], corrupt[place].repeat(len(numbers), 1, 1))
            with _put(model, place, patched):
                nats = sums_of(logits_of(model.net), many.clean, many, None)[:, 2]
            lost[numbers] = nats.double().view(-1, count).sum(1) - whole
        found[place] = lost / int(prompts.asked.sum())
    return found


def _repeated(prompts: Prompts, copies: int) -> Prompts:
    """The prompts, several times one after another."""
    clean, corrupt, asked, answers = (
        each.repeat(copies, 1) for each in (prompts.clean, prompts.corrupt, prompts.asked, prompts.answers)
    )
    return Prompts(clean, corrupt, asked, answers, prompts.among)


def activation_norms(model: Model, prompts: Prompts) -> Scores:
    """The root mean square of what every component adds to the stream on the clean prompts.

    Exact for neurons. A head's columns are counted as if their weights had the same norm and were at right angles.
    """
    totals: Scores = {}
    for part in prompts.clean.split(PROMPTS_AT_ONCE):
        for place, output in outputs_of(model, part).items():
            by_component = _by_component(model, place, output)
            totals[place] = totals.get(place, 0) + by_component.double().square().sum((0, 1, 3))
    norms = weight_norms(model)
    return {place: total.sqrt() * norms[place] / prompts.clean.numel() ** 0.5 for place, total in totals.items()}


@torch.no_grad()
def weight_norms(model: Model) -> Scores:
    """The root mean square over a component's columns of the norms of the weights that write them to the stream."""
    found: Scores = {}
    for place in Components.none(model).masks:
        kind, block = place
        reader: Any = model.heads_out(block) if kind == "heads" else model.down(block)
        weight = reader.weight.T if isinstance(reader, nn.Linear) else reader.weight  # [columns, d]
        square = weight.double().square().sum(1)[None, None]
        found[place] = _by_component(model, place, square)[0, 0].mean(1).sqrt()
    return found


def random_scores(model: Model, seed: int) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    return {place: torch.rand(len(mask), generator=generator) for place, mask in Components.none(model).masks.items()}


def _by_component(model: Model, place: Place, columns: Tensor) -> Tensor:
    """Columns [prompts, length, columns] as [prompts, length, components, columns of each]."""
    kind, block = place
    return columns.unflatten(-1, (model.heads(block) if kind == "heads" else columns.shape[-1], -1))


@contextmanager
def _put(model: Model, place: Place, change: Any) -> Iterator[None]:
    """Inside, the outputs of the components at `place` are what `change` makes of them."""
    kind, block = place
    reader = model.heads_out(block) if kind == "heads" else model.down(block)
    handle = reader.register_forward_pre_hook(lambda _, args: (change(args[0]), *args[1:]))
    try:
        yield
    finally:
        handle.remove()


gim = attribution_inside(
    frozen_norms,
    partial(tempered, temperature=TEMPERATURE, factor=FACTOR),
    partial(divided_gates, factor=FACTOR),
)

ON_FEW = "activation patching", "ours, few prompts"

METHODS = {
    "ours": attribute,
    "ours, 1 step": partial(attribute, steps=1),
    "EAP-IG, inputs": eap_ig_inputs,
    "EAP-IG, activations": eap_ig_activations,
    "attribution patching": attribution_patching,
    "GIM": gim,
    "GIM, norms alone": attribution_inside(frozen_norms),
    "GIM, temperature alone": attribution_inside(partial(tempered, temperature=TEMPERATURE, factor=1.0)),
    "GIM, factors alone": attribution_inside(
        partial(tempered, temperature=1.0, factor=FACTOR), partial(divided_gates, factor=FACTOR)
    ),
    "activation patching": activation_patching,
    "ours, few prompts": attribute,
    "null:activation norm": activation_norms,
    "null:weight norm": lambda model, _: weight_norms(model),
}
