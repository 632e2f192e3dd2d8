"""Trained references: translations after further gradient descent on cross-entropy. They show how far closed forms are from what
training reaches. No composite is made of one, and their rows are named as trained."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from stitch.activations.paired import Paired
from stitch.composite.compose import late_half, late_logits
from stitch.models.model import Model
from stitch.progress import Progress
from stitch.translation.module import embeddings_of, translation_module
from stitch.translation.types import Codes, Translation

WINDOWS = 8  # per step
RATE = 1e-2
COPIES = 4  # of a window's logits during a step: themselves, log-probabilities and their gradients


def trained(
    start: Translation,
    a: Model,
    b: Model,
    fit: Paired,
    *,
    steps: int,
    seed: int,
    rate: float = RATE,
    memory: int = 4 * 2**30,
    progress: Progress | None = None,
) -> Translation:
    """`start` after `steps` Adam steps on the cross-entropy of B's late half, with both models frozen.

    A step's windows are passed one after another as far as `memory`, in bytes, demands.

    `rate` is the first step of a parameter, relative to its root mean square; steps decrease linearly to 0. Weights, tables, bias
    and encoders are trained; B's state for BOS (`first`) is not. With dense codes among the inputs the result is an MLP.

    Source: model stitching, Bansal et al. 2021 (2106.07682); between language models 2506.06609.
    """
    module = translation_module(start, a, b, fit.site_a).train()
    late = late_half(b, fit.site_b)
    late.net.requires_grad_(False)
    groups = []
    for name, parameter in module.named_parameters():
        parameter.data = parameter.data.clone()  # `start` must not change
        if name == "first":
            parameter.requires_grad_(False)
        else:
            size = float(parameter.detach().float().square().mean().sqrt())
            groups.append({"params": [parameter], "lr": rate * max(size, 1e-6)})
    optimiser = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / max(steps, 1))
    vocabulary = min(a.vocabulary, b.vocabulary)
    with torch.enable_grad():
        for step, (streams, ids) in enumerate(_windows(fit, sorted(start.sites), steps, seed)):
            optimiser.zero_grad(set_to_none=True)
            together = max(1, memory // 4 // (COPIES * 4 * ids.shape[1] * vocabulary))
            for some in torch.arange(len(ids)).split(together):
                here = ids[some].to(b.device)
                positions = torch.arange(here.shape[1], device=b.device).expand_as(here)
                read = {site: x[some].to(b.device) for site, x in streams.items()}
                hidden = module(read, here, positions, embeddings=embeddings_of(a, b))
                logits = late_logits(late, hidden, ids=here)[:, :-1, :vocabulary].float()
                loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), here[:, 1:].flatten())
                (loss * len(some) / len(ids)).backward()
            optimiser.step()
            schedule.step()
            if progress:
                progress("trained reference (steps)", step + 1, steps)
    return _read_back(start, {name: value.detach().cpu() for name, value in module.state_dict().items()})


def _windows(fit: Paired, sites: Sequence[int], steps: int, seed: int) -> Iterator[tuple[dict[int, Tensor], Tensor]]:
    """`steps` batches of whole windows: A's streams at `sites`, and ids. Shards and their windows are shuffled per epoch."""
    generator = torch.Generator().manual_seed(seed)
    done = 0
    while True:
        for shard in torch.randperm(fit.a.shards, generator=generator).tolist():
            streams = {site: fit.a.read(shard, site).float() for site in sites}
            ids = fit.a.windows.ids[fit.a.rows(shard)].long()
            for chosen in torch.randperm(len(ids), generator=generator).split(WINDOWS):
                if done == steps:
                    return
                yield {site: x[chosen] for site, x in streams.items()}, ids[chosen]
                done += 1


def _read_back(start: Translation, state: dict[str, Tensor]) -> Translation:
    """The translation with the weights of a module's state; the inverse of `stitch.translation.module.translation_tensors`."""
    terms = []
    for index, term in enumerate(start.terms):
        own = {name.rpartition(".")[2]: value for name, value in state.items() if name.startswith(f"terms.{index}.")}
        if isinstance(term.input, Codes):
            parts = {name: own[name] for name in ("encoder", "encoder_bias", "threshold") if name in own}
            term = replace(term, input=Codes(term.input.site, replace(term.input.dictionary, **parts)))
        if term.fallback is not None:
            term = replace(term, fallback=replace(term.fallback, weight=own["fallback"].float()))
        if term.weight is not None:
            term = replace(term, weight=own["table" if term.is_table else "weight"].float())
        terms.append(term)
    return replace(start, name=f"{start.name}-trained", terms=tuple(terms), bias=state["bias"].float())
