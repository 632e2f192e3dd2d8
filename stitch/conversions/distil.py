"""Fine-tuning by gradient descent on KL(donor ‖ converted model), through all blocks."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from stitch.progress import Progress
from stitch.text.windows import Windows

WARM_UP = 20  # steps


def distil(
    net: nn.Module,
    donor: nn.Module,
    windows: Windows,
    parameters: Iterable[nn.Parameter],
    *,
    steps: int,
    rate: float,
    batch: int,
    seed: int = 0,
    progress: Progress | None = None,
    task: str = "fine-tuning (steps)",
) -> list[float]:
    """Minimises KL(donor ‖ net) of the next token by Adam, changing `parameters` of `net` in place.

    Returns the mean divergence of each step, in nats per token.
    """
    divergences: list[float] = []
    device = next(net.parameters()).device

    def backward(ids: Tensor) -> None:
        ids = ids.to(device)
        with torch.no_grad():
            wanted = donor(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
        given = net(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
        loss = (wanted.exp() * (wanted - given)).sum(-1).mean()
        loss.backward()
        divergences.append(float(loss.detach()))

    adam(parameters, windows, backward, steps=steps, rate=rate, batch=batch, seed=seed, progress=progress, task=task)
    return divergences


def adam(
    parameters: Iterable[nn.Parameter],
    windows: Windows,
    backward: Callable[[Tensor], None],
    *,
    steps: int,
    rate: float,
    batch: int,
    seed: int,
    progress: Progress | None,
    task: str,
) -> None:
    """Takes `steps` steps of Adam. `backward` gets the ids of a batch of windows and computes the gradients.

    Windows are drawn in random order, all of them once before any is drawn again. The rate rises over WARM_UP steps and decays as
    a cosine.
    """
    optimiser = torch.optim.Adam(parameters, lr=rate, betas=(0.9, 0.99))
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(0)
    for step in range(steps):
        if len(order) < batch:
            order = torch.cat([order, torch.randperm(len(windows.ids), generator=generator)])
        taken, order = order[:batch], order[batch:]
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / WARM_UP) * (1 + math.cos(math.pi * step / steps)) / 2
        optimiser.zero_grad()
        backward(windows.ids[taken].long())
        optimiser.step()
        if progress:
            progress(task, step + 1, steps)
