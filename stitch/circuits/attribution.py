"""How much every head and neuron contributes to a behaviour: integrated gradients of the right answers' log probability."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from stitch.circuits.behaviours import Prompts
from stitch.circuits.components import Place, watched
from stitch.circuits.score import PROMPTS_AT_ONCE, log_probabilities
from stitch.errors import UsageError
from stitch.models.model import Model
from stitch.progress import Progress

STEPS = 5

Outputs = dict[Place, Tensor]


def attribute(
    model: Model, of: Prompts, *, steps: int = STEPS, progress: Progress | None = None
) -> dict[Place, Float[Tensor, " components"]]:
    """Nats per answer that each component brings: the change of its output from the corrupt to the clean prompt, times the
    gradient with respect to it, averaged over `steps` inputs on the way from the one's embeddings to the other's.

    First order, so components that make up for each other's loss both count little: confirm by ablation.

    Raises: UsageError for a composite whose translation looks token ids up.
    Source: EAP-IG, Hanna, Pezzelle & Belinkov 2024, arXiv:2403.17806, for nodes in the place of edges.
    """
    if any(getattr(module, "reads_tokens", False) for module in model.net.modules()):
        raise UsageError(
            f"attribution runs on embeddings; {model.name} looks token ids up in the middle: take one of its donors."
        )

    def way(part: slice) -> tuple[Outputs, Outputs, Callable[[float], tuple[Outputs, Tensor]]]:
        ids = [side[part].to(model.device) for side in (of.clean, of.corrupt)]
        ends = []
        with torch.no_grad():
            for side in ids:
                with watched(model) as seen:
                    model.net(input_ids=side, use_cache=False)
                ends.append(dict(seen))
            clean, corrupt = (model.embedding(side) for side in ids)

        def at(share: float) -> tuple[Outputs, Tensor]:
            between = corrupt + share * (clean - corrupt)
            with watched(model) as seen:
                logits = model.net(inputs_embeds=between.requires_grad_(), use_cache=False).logits
                return dict(seen), logits[of.asked[part].to(model.device)]

        return ends[0], ends[1], at

    return integrated(model, of, way, steps, progress)


def integrated(
    model: Model,
    of: Prompts,
    way: Callable[[slice], tuple[Outputs, Outputs, Callable[[float], tuple[Outputs, Tensor]]]],
    steps: int = STEPS,
    progress: Progress | None = None,
) -> dict[Place, Tensor]:
    """The mean gradient on the way from corrupt to clean, times the change of each component's output.

    `way` gives, for some of the prompts, outputs on the clean and on the corrupt ones, and a function from the share of the
    way to outputs there and the logits [answers, vocabulary] that they lead to.
    """
    totals: dict[Place, Tensor] = {}
    for start in range(0, len(of.clean), PROMPTS_AT_ONCE):
        part = slice(start, start + PROMPTS_AT_ONCE)
        answers = of.answers[part][of.asked[part]].to(model.device)
        clean, corrupt, at = way(part)
        for step in range(steps):
            with torch.enable_grad():
                seen, logits = at((step + 0.5) / steps)
                options, wanted = log_probabilities(logits, answers, of.among)
                answered = options.gather(1, wanted[:, None]).sum()
            gradients = torch.autograd.grad(answered, list(seen.values()))
            for place, gradient in zip(seen, gradients, strict=True):
                brought = ((clean[place] - corrupt[place]) * gradient).double().sum((0, 1)).cpu()
                totals[place] = totals.get(place, 0) + brought / (steps * int(of.asked.sum()))
        if progress:
            progress("attribution (prompts)", min(part.stop, len(of.clean)), len(of.clean))
    return {
        (kind, block): total.view(model.heads(block), -1).sum(1) if kind == "heads" else total
        for (kind, block), total in totals.items()
    }
