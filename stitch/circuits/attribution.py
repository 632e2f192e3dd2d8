"""The contribution of every head and neuron to a behaviour, by integrated gradients of the answers' log probability."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from stitch.circuits.behaviours.prompts import Prompts
from stitch.circuits.components import Place, watched
from stitch.circuits.score import PROMPTS_AT_ONCE, log_probabilities
from stitch.errors import UsageError
from stitch.models.model import Model
from stitch.progress import Progress

STEPS = 5

Outputs = dict[Place, Tensor]
OutputsAndLogits = tuple[Outputs, Tensor]
InputPath = tuple[Outputs, Outputs, Callable[[float], OutputsAndLogits]]
"""Outputs of all components on clean prompts and on corrupt ones, and a function from a share of the way between their inputs
to the outputs there and the logits [answers, vocabulary]."""


def attribute(
    model: Model, prompts: Prompts, *, steps: int = STEPS, progress: Progress | None = None
) -> dict[Place, Float[Tensor, " components"]]:
    """The nats per answer that each component contributes, by place.

    That is the change of its output from the corrupt to the clean prompt, times the gradient with respect to it, averaged over
    `steps` inputs on the straight line between the two prompts' embeddings. It is a first-order estimate: two components that can
    stand in for each other both get low values, so ablation has to confirm a choice.

    Raises: UsageError for a composite whose translation looks up token ids.
    Source: EAP-IG, Hanna, Pezzelle & Belinkov 2024, arXiv:2403.17806, for nodes instead of edges.
    """
    if looks_up_ids(model):
        raise UsageError(
            f"attribution runs on embeddings; {model.name} looks up token ids in its translation: choose one of its donors."
        )

    def path(part: slice) -> InputPath:
        ids = [side[part].to(model.device) for side in (prompts.clean, prompts.corrupt)]
        ends = []
        with torch.no_grad():
            for side in ids:
                with watched(model) as seen:
                    model.net(input_ids=side, use_cache=False)
                ends.append(dict(seen))
            clean, corrupt = (model.embedding(side) for side in ids)

        def at(share: float) -> OutputsAndLogits:
            between = corrupt + share * (clean - corrupt)
            with watched(model) as seen:
                logits = model.net(inputs_embeds=between.requires_grad_(), use_cache=False).logits
                return dict(seen), logits[prompts.asked[part].to(model.device)]

        return ends[0], ends[1], at

    return integrated(model, prompts, path, steps, progress)


def looks_up_ids(model: Model) -> bool:
    """Whether a translation inside a composite reads token ids, so that the model cannot run on embeddings alone."""
    return any(getattr(module, "reads_tokens", False) for module in model.net.modules())


def integrated(
    model: Model,
    prompts: Prompts,
    path: Callable[[slice], InputPath],
    steps: int = STEPS,
    progress: Progress | None = None,
) -> dict[Place, Tensor]:
    """Integrated gradients: the mean gradient on the path from corrupt to clean, times the change of each component's output.

    `path` gives that path for some of the prompts. The result is in nats per answer, one number per head or neuron.
    """
    totals: dict[Place, Tensor] = {}
    for start in range(0, len(prompts.clean), PROMPTS_AT_ONCE):
        part = slice(start, start + PROMPTS_AT_ONCE)
        answers = prompts.answers[part][prompts.asked[part]].to(model.device)
        clean, corrupt, at = path(part)
        for step in range(steps):
            with torch.enable_grad():
                outputs, logits = at((step + 0.5) / steps)
                options, places = log_probabilities(logits, answers, prompts.among)
                total = options.gather(1, places[:, None]).sum()
            gradients = torch.autograd.grad(total, list(outputs.values()))
            for place, gradient in zip(outputs, gradients, strict=True):
                contribution = ((clean[place] - corrupt[place]) * gradient).double().sum((0, 1)).cpu()
                totals[place] = totals.get(place, 0) + contribution / (steps * int(prompts.asked.sum()))
        if progress:
            progress("attribution (prompts)", min(part.stop, len(prompts.clean)), len(prompts.clean))
    return {
        (kind, block): total.view(model.heads(block), -1).sum(1) if kind == "heads" else total
        for (kind, block), total in totals.items()
    }
