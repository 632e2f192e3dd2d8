"""Edges between heads, MLPs, tokens and answers for `circuits.py`: scored from gradients at the ends of edges, and cut.

An edge leads from a source (the tokens' embeddings, a head, an MLP) to a target (what a head or an MLP reads of the stream,
or what the final norm reads for the answers). Every head gets a stream of its own: a pass has a copy of the prompts for each
head of a block. Matrices are [targets, sources]: block after block the heads and then the MLP, the answers last, the tokens
first.

    ours                    mean gradient at the middles of 5 parts of the way between the inputs, as `direct_effects` has it
    EAP-IG, inputs          the same at their far ends (arXiv:2403.17806)
    attribution patching    EAP: the gradient on the clean prompt (arXiv:2310.10348)
    GIM                     EAP with the gradients of GIM (arXiv:2505.17630)
    activation norm         a null: the root mean square of what the source writes, whatever the target
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from _circuit_peers import FACTOR, TEMPERATURE, divided_gates, frozen_norms, tempered
from torch import Tensor, nn

from stitch.circuits.attribution import STEPS
from stitch.circuits.behaviours.prompts import Prompts
from stitch.circuits.score import PROMPTS_AT_ONCE, log_probabilities
from stitch.models.model import Model


@dataclass
class SplitPass:
    """A forward pass: the logits, what every source wrote [prompts, length, d], and what targets read.

    In order: of each block the heads together [heads, prompts, length, d] and the MLP, then the answers.
    """

    logits: Tensor = field(init=False)
    written: list[Tensor] = field(default_factory=list)
    read: list[Tensor] = field(default_factory=list)


def edges(model: Model) -> Tensor:
    """Which edges there are: a source comes before its target."""
    heads, size = model.heads(0), model.depth * (model.heads(0) + 1) + 1
    target, source = torch.arange(size)[:, None], torch.arange(size)[None]
    block, place = target // (heads + 1), target % (heads + 1)
    before = torch.where(place == heads, target, block * (heads + 1))  # sources before it beside the tokens
    before[-1] = size - 1
    return source <= before


def split_pass(
    model: Model, embedded: Tensor, cut: Tensor | None = None, instead: Sequence[Tensor] | None = None
) -> SplitPass:
    """A pass over embeddings [prompts, length, d] in which the edges that are `cut` carry what their source wrote `instead`.

    For models of blocks that read the sum of all that came before, attention first and then the MLP.
    """
    heads, count = model.heads(0), len(embedded)
    found, stream = SplitPass(), [embedded]
    mlp_reads: list[Tensor] = []

    def seen_by(first: int, targets: int) -> Tensor:
        """What these targets read, [targets, prompts, length, d]."""
        whole = stream[0].expand(targets, *stream[0].shape)
        if cut is None or instead is None:
            return whole + 0
        missing = cut[first : first + targets, : len(found.written)].to(whole)
        changes = torch.stack([one - other for one, other in zip(found.written, instead, strict=False)])
        return whole - torch.einsum("ts,spld->tpld", missing, changes)

    def write(output: Tensor) -> None:
        found.written.append(output)
        stream[0] = stream[0] + output

    def enter(block: int, _: Any, args: tuple) -> tuple:
        if block == 0:
            stream[0] = args[0][:count]
            found.written.append(stream[0])
        else:
            write(args[0][:count] - mlp_reads[-1])
        found.read.append(seen_by(block * (heads + 1), heads))
        return found.read[-1].flatten(0, 1), *args[1:]

    def attend(block: int, module: Any, args: tuple, _: Any) -> Tensor:
        own = args[0].unflatten(0, (heads, count)).unflatten(-1, (heads, -1))
        own = own.diagonal(dim1=0, dim2=3).movedim(-1, 0)  # of every head, what it computed in its copy
        weight = (module.weight.T if isinstance(module, nn.Linear) else module.weight).unflatten(0, (heads, -1))
        for output in torch.einsum("hplc,hcd->hpld", own, weight):
            write(output)
        if module.bias is not None:
            stream[0] = stream[0] + module.bias
        mlp_reads.append(seen_by(block * (heads + 1) + heads, 1)[0])
        found.read.append(mlp_reads[-1])
        return (mlp_reads[-1] - found.read[-2]).flatten(0, 1)  # the block adds it to what the heads read

    def end(args: tuple) -> tuple:
        write(args[0][:count] - mlp_reads[-1])
        found.read.append(seen_by(model.depth * (heads + 1), 1)[0])
        return (found.read[-1].repeat(heads, 1, 1),)

    with ExitStack() as hooks:
        for number, block in enumerate(model.blocks):
            before, after = partial(enter, number), partial(attend, number)
            hooks.callback(block.register_forward_pre_hook(before).remove)
            hooks.callback(model.heads_out(number).register_forward_hook(after).remove)
        hooks.callback(model.final_norm.register_forward_pre_hook(lambda _, args: end(args)).remove)
        logits = model.net(inputs_embeds=embedded.repeat(heads, 1, 1), use_cache=False).logits
    found.logits = logits[:count]
    return found


def edge_scores(model: Model, prompts: Prompts, shares: Sequence[float]) -> Tensor:
    """The nats per answer of every edge: the change of what its source writes, times the mean gradient at its target over these
    shares of the way from the corrupt to the clean embeddings. 0 where there is no edge."""
    total: Any = 0
    for start in range(0, len(prompts.clean), PROMPTS_AT_ONCE):
        part = prompts.part(slice(start, start + PROMPTS_AT_ONCE))
        with torch.no_grad():
            first, last = (model.embedding(ids.to(model.device)) for ids in (part.corrupt, part.clean))
            clean, corrupt = (torch.stack(split_pass(model, each).written) for each in (last, first))
        for share in shares:
            with torch.enable_grad():
                seen = split_pass(model, (first + share * (last - first)).requires_grad_())
                options, answers = log_probabilities(seen.logits[part.asked], part.answers[part.asked], part.among)
                gradients = torch.autograd.grad(options.gather(1, answers[:, None]).sum(), seen.read)
            at_targets = torch.cat([one if one.ndim == 4 else one[None] for one in gradients])
            total = total + torch.einsum("spld,tpld->ts", (clean - corrupt).double(), at_targets.double())
    return torch.where(edges(model), total / (len(shares) * int(prompts.asked.sum())), 0.0)


def gim_edges(model: Model, prompts: Prompts) -> Tensor:
    with frozen_norms(model), tempered(model, TEMPERATURE, FACTOR), divided_gates(model, FACTOR):
        return edge_scores(model, prompts, [1.0])


@torch.no_grad()
def written_norms(model: Model, prompts: Prompts) -> Tensor:
    """For every edge, the root mean square of what its source writes on the clean prompts."""
    parts = prompts.clean.split(PROMPTS_AT_ONCE)
    written = torch.cat([torch.stack(split_pass(model, model.embedding(ids)).written) for ids in parts], 1)
    return edges(model) * written.double().square().mean((1, 2, 3)).sqrt()


EDGE_METHODS = {
    "ours": lambda model, prompts: edge_scores(model, prompts, [(step + 0.5) / STEPS for step in range(STEPS)]),
    "EAP-IG, inputs": lambda model, prompts: edge_scores(model, prompts, [(step + 1) / STEPS for step in range(STEPS)]),
    "attribution patching": lambda model, prompts: edge_scores(model, prompts, [1.0]),
    "GIM": gim_edges,
    "null:activation norm": written_norms,
}
