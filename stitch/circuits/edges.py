"""Edges between components: what one contributes to the answers directly through another, in nats per answer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stitch.circuits.attribution import STEPS
from stitch.circuits.behaviours.prompts import Prompts
from stitch.circuits.components import Component, Components, Place, separated, watched
from stitch.circuits.score import PROMPTS_AT_ONCE, answered, log_probabilities, logits_of
from stitch.models.model import Model
from stitch.progress import Progress

METHOD = "EAP-IG: edge attribution patching with integrated gradients (arXiv:2310.10348, arXiv:2403.17806)"
MOST = 64  # components of a circuit that edges are computed for: each takes a backward pass
PROMPTS = 16  # prompts that they are averaged over
TOKENS, ANSWERS = "tokens", "answers"  # the ends of all paths: the token embeddings, and the answers' log probability

Target = tuple[Component | None, int | None]
"""What an edge leads into: a component, or None for the answers; at one position in the prompts, or None for all."""


def name_of(component: Component) -> str:
    """A component as reports and pages name it, such as `head 1.2` for head 2 of block 1."""
    (kind, block), number = component
    return f"{kind.removesuffix('s')} {block}.{number}"


def circuit_edges(model: Model, prompts: Prompts, kept: Components, progress: Progress | None = None) -> dict:
    """The edges between the components of a circuit as its report has them, on the first `PROMPTS` prompts.

    `components` has what each contributes on these prompts, `into` the edges by the component that they lead into and the one
    that they come from; all in nats per answer. Of a large circuit only the `MOST` components that contribute most have edges,
    and `left_out` counts the others. `difference` is what `tokens` would contribute with infinitely many steps: the more the two
    differ, the rougher is the estimate.
    """
    prompts = prompts.part(slice(PROMPTS))
    every = kept.listed()
    total = contributions(model, prompts, every).sum(0)
    numbers = sorted(total[:-1].abs().argsort(descending=True, stable=True)[:MOST].tolist())
    chosen = [every[number] for number in numbers]
    targets: list[Target] = [*((component, None) for component in chosen), (None, None)]
    sources = [*map(name_of, chosen), TOKENS]
    effects = direct_effects(model, prompts, chosen, targets, progress=progress).sum(1)
    return {
        "method": METHOD,
        "prompts": len(prompts.clean),
        "left_out": len(every) - len(chosen),
        "difference": round(difference(model, prompts), 5),
        "components": _rounded(sources, total[[*numbers, -1]]),
        "into": {
            name: into
            for name, effect in zip([*map(name_of, chosen), ANSWERS], effects, strict=True)
            if (into := _rounded(sources, effect, zeros=False))
        },
    }


def difference(model: Model, prompts: Prompts) -> float:
    """By how many nats per answer the answers are likelier on the clean than on the corrupt prompts."""
    clean, corrupt = (answered(logits_of(model.net), ids, prompts)["nats"] for ids in (prompts.clean, prompts.corrupt))
    return corrupt - clean


def _rounded(names: Sequence[str], values: Tensor, *, zeros: bool = True) -> dict[str, float]:
    rounded = {name: round(value, 5) for name, value in zip(names, values.tolist(), strict=True)}
    return {name: value for name, value in rounded.items() if value or zeros}


def contributions(
    model: Model, prompts: Prompts, sources: Sequence[Component], steps: int = STEPS
) -> Float[Tensor, "length sources_and_tokens"]:
    """The nats per answer that each component contributes at each position, along all paths; in the last column the tokens'.

    Their sum over positions is `stitch.circuits.attribution.attribute`, with the same `steps`.
    """
    total = torch.zeros(prompts.clean.shape[1], len(sources) + 1, dtype=torch.float64)
    for point in _points(model, prompts, steps):
        stream = point.embedded.requires_grad_()
        with torch.enable_grad(), watched(model) as outputs:
            logits = model.net(inputs_embeds=stream, use_cache=False).logits
            answers = point.answers(logits).sum()
        places = list(dict.fromkeys(place for place, _ in sources))
        gradients = torch.autograd.grad(answers, [*(outputs[place] for place in places), stream])
        total += _by_source(model, point, sources, dict(zip([*places, None], gradients, strict=True)))
    return total / (steps * int(prompts.asked.sum()))


def direct_effects(
    model: Model,
    prompts: Prompts,
    sources: Sequence[Component],
    targets: Sequence[Target],
    *,
    steps: int = STEPS,
    progress: Progress | None = None,
) -> Float[Tensor, "targets length sources_and_tokens"]:
    """The nats per answer that each source at each position contributes directly through each target; the last source is tokens.

    That is the change of the source's output from the corrupt to the clean prompt, times the gradient of the target's output with
    respect to it along the residual stream alone, times the gradient of the answers' log probability with respect to the target's
    output; averaged over `steps` inputs between the two prompts. It is a first-order estimate, as `attribute` is. The direct
    effects of a source through all components of the model and through the answers add up to what it contributes.

    Source: EAP, Syed, Rager & Conmy 2023, arXiv:2310.10348; EAP-IG, Hanna, Pezzelle & Belinkov 2024, arXiv:2403.17806.
    """
    length = prompts.clean.shape[1]
    found = torch.zeros(len(targets), length, len(sources) + 1, dtype=torch.float64)
    through = list(dict.fromkeys(component[0] for component, _ in targets if component))
    places = list(dict.fromkeys(place for place, _ in sources))
    count = steps * -(-len(prompts.clean) // PROMPTS_AT_ONCE)
    for done, point in enumerate(_points(model, prompts, steps), 1):
        stream = point.embedded.requires_grad_()
        with torch.enable_grad(), watched(model) as outputs:
            answers = point.answers(model.net(inputs_embeds=stream, use_cache=False).logits)
            gradients = torch.autograd.grad(answers.sum(), [outputs[place] for place in through]) if through else ()
        of_answers = dict(zip(through, gradients, strict=True))
        with torch.enable_grad(), separated(model) as (computed, read):
            answers = point.answers(model.net(inputs_embeds=stream, use_cache=False).logits)
        ends = [*(read[place] for place in places), stream]
        for number, (component, position) in enumerate(targets):
            if component is None:
                output, seed = answers, point.asked_at(position).to(answers)
            else:
                output = computed[component[0]]
                seed = of_answers[component[0]] * _mask(model, component, position, output)
            direct = torch.autograd.grad(output, ends, seed, retain_graph=True, allow_unused=True)
            found[number] += _by_source(model, point, sources, dict(zip([*places, None], direct, strict=True)))
        if progress:
            progress("edges (steps)", done, count)
    return found / (steps * int(prompts.asked.sum()))


@dataclass(frozen=True)
class _Point:
    """An input between some corrupt and clean prompts, and the changes of components' outputs and embeddings from these to those.

    Changes are by place, those of the embeddings under None.
    """

    prompts: Prompts
    embedded: Float[Tensor, "prompts length d"]
    changes: dict[Place | None, Float[Tensor, "prompts length columns"]]

    def answers(self, logits: Float[Tensor, "prompts length vocabulary"]) -> Float[Tensor, " places"]:
        """The answers' log probabilities."""
        asked = self.prompts.asked
        answers = self.prompts.answers[asked].to(logits.device)
        options, places = log_probabilities(logits[asked.to(logits.device)], answers, self.prompts.among)
        return options.gather(1, places[:, None])[:, 0]

    def asked_at(self, position: int | None) -> Tensor:
        """Which of the answers are at this position, or all."""
        positions = self.prompts.asked.nonzero()[:, 1]
        return torch.ones_like(positions) if position is None else positions == position


def _points(model: Model, prompts: Prompts, steps: int) -> Iterator[_Point]:
    """The points that gradients are averaged over: for some prompts at a time, evenly from the corrupt to the clean ones."""
    for start in range(0, len(prompts.clean), PROMPTS_AT_ONCE):
        part = prompts.part(slice(start, start + PROMPTS_AT_ONCE))
        ends: list[dict[Place | None, Tensor]] = []
        with torch.no_grad():
            for ids in (part.clean.to(model.device), part.corrupt.to(model.device)):
                with watched(model) as seen:
                    model.net(input_ids=ids, use_cache=False)
                ends.append({**seen, None: model.embedding(ids)})
        clean, corrupt = ends
        changes = {place: clean[place] - corrupt[place] for place in clean}
        for step in range(steps):
            yield _Point(part, corrupt[None] + (step + 0.5) / steps * changes[None], changes)


def _mask(
    model: Model, component: Component, position: int | None, output: Float[Tensor, "prompts length columns"]
) -> Float[Tensor, "#prompts length columns"]:
    """1 in the columns of a component, at a position or all; else 0."""
    (kind, block), number = component
    width = output.shape[-1] // model.heads(block) if kind == "heads" else 1
    mask = torch.zeros_like(output[:1])
    mask[:, slice(None) if position is None else position, number * width : (number + 1) * width] = 1
    return mask


def _by_source(
    model: Model, point: _Point, sources: Sequence[Component], gradients: dict[Place | None, Tensor | None]
) -> Float[Tensor, "length sources_and_tokens"]:
    """Changes times gradients, summed over prompts and over the columns of each source; in the last column the embeddings'."""
    by_place: dict[Place | None, Tensor] = {}
    for place, gradient in gradients.items():
        if gradient is not None:  # None: there is no path from these components to the target
            product = (point.changes[place].float() * gradient.float()).double().sum(0).cpu()
            whole = place is None or place[0] == "heads"
            groups = 1 if place is None else model.heads(place[1])
            by_place[place] = product.unflatten(1, (groups, -1)).sum(2) if whole else product
    found = torch.zeros(point.embedded.shape[1], len(sources) + 1, dtype=torch.float64)
    for column, (place, number) in enumerate([*sources, (None, 0)]):
        if place in by_place:
            found[:, column] = by_place[place][:, number]
    return found
