"""Allocates a given number of exact keys to the key heads so that the estimated divergence from the donor is smallest.

Heads with local attention need few keys, heads with long-range attention need many. The cost of n keys is measured on the donor.
Let δ_t be the change of a head's output at token t of a window when the last n keys and the sinks are exact and all other keys
are one fitted feature. Let g_t be the gradient, at that output, of log p of tokens that the donor itself samples, one at each
position. To second order this change alone costs

    KL(donor ‖ changed) ≈ ½ E[(Σ_t g_t·δ_t)²]     nats per window

(E[ggᵀ] is the Fisher information; Amari 1998). Changes at several tokens act together on later predictions, so they are summed
before squaring. Costs of heads are added as if they were independent. Keys are given to the heads
where they save most per byte, along the lower convex hull of each head's costs. This minimises the total cost for the bytes used,
except for the last keys, which may not fit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stitch.conversions.donor import Donor
from stitch.conversions.recurrence.fit import RATE, divergence, windows_per_step
from stitch.conversions.recurrence.fit_outputs import fit_outputs
from stitch.conversions.recurrence.forms import RecurrentForm, memories, sibling
from stitch.conversions.recurrence.head_moments import HeadMoments
from stitch.conversions.recurrence.initialise import initialise
from stitch.modeling.modeling_recurrent import LARGE_NEGATIVE, RecurrentForCausalLM, RecurrentMemory, group_matmul
from stitch.progress import Progress
from stitch.text.windows import Windows

Sizes = tuple[tuple[int, ...], ...]  # by block and key head

# Candidate sizes for a context of 256 keys.
IN_256 = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256)
ROUNDS = 3  # costs hold near the sizes that the features were fitted with, so they are measured again at the new sizes
MOST_STEPS = 60  # of the fit in each round
MEASURED = 16_384  # tokens on which costs are measured


def allocate(
    net: RecurrentForCausalLM,
    donor: Donor,
    form: RecurrentForm,
    sums: Sequence[HeadMoments],
    progress: Progress | None = None,
) -> Sizes:
    """The number of exact keys of every key head, in total no more bytes than with `form.window + form.slots` keys in each.

    Costs are measured in ROUNDS rounds, each with the sizes chosen in the round before. Returns the sizes of the round with the
    lowest KL(donor ‖ changed) on the sweep split.
    """
    alike = form.window + form.slots
    sizes = candidate_sizes(donor.context, alike)
    free = [memory.recurrent for memory in memories(net) for _ in range(memory.shape.groups)]
    widths = [memory.shape.width for memory in memories(net) for _ in range(memory.shape.groups)]
    plain = RecurrentForm(
        features="mean", window=alike, sinks=form.sinks, hidden=form.hidden, layers=form.layers,
        keys=by_block(net, [alike] * len(free)),
    )  # fmt: skip
    windows, steps = donor.windows["fit"], min(form.steps, MOST_STEPS)
    batch = windows_per_step(windows)
    tried: list[tuple[float, Sizes]] = []
    for number in range(ROUNDS):
        task = f"keys by head, {number + 1} of {ROUNDS}"
        surrogate = sibling(net, plain)
        initialise(surrogate, sums, form.seed)
        common = {"seed": form.seed, "batch": batch, "progress": progress}
        fit_outputs(surrogate, windows, steps=steps, rate=RATE, task=f"{task} (steps)", **common)
        assert plain.keys is not None
        tried.append((divergence(surrogate, donor), plain.keys))
        if number + 1 < ROUNDS:
            costs = costs_by_size(surrogate, windows.first(MEASURED), sizes, task=f"{task} (windows)", **common)
            chosen = iter(distribute_keys(
                torch.cat(costs)[torch.tensor(free)], sizes, [w for w, is_free in zip(widths, free, strict=True) if is_free],
                alike=alike,
            ))  # fmt: skip
            plain = replace(plain, keys=by_block(net, [next(chosen) if is_free else 0 for is_free in free]))
    return min(tried)[1]


def candidate_sizes(context: int, alike: int) -> list[int]:
    """Candidate sizes, ascending. The smallest is at most `alike`, so that equal sizes are always possible."""
    sizes = {min(max(1, round(n * context / 256)), context - 1) for n in IN_256}
    return sorted(sizes | {min(alike, *sizes)})


def by_block(net: RecurrentForCausalLM, flat: Sequence[int]) -> Sizes:
    """The sizes of all key heads, in order, grouped by block."""
    each = iter(flat)
    return tuple(tuple(next(each) for _ in range(memory.shape.groups)) for memory in memories(net))


def shuffled_sizes(net: RecurrentForCausalLM, sizes: Sizes, seed: int) -> Sizes:
    """The same sizes, permuted at random among key heads of the same width."""
    generator = torch.Generator().manual_seed(seed)
    kinds = [(memory.shape.width, memory.recurrent) for memory in memories(net) for _ in range(memory.shape.groups)]
    flat, shuffled = [size for block in sizes for size in block], [0] * len(kinds)
    for kind in dict.fromkeys(kinds):
        heads = [head for head, one in enumerate(kinds) if one == kind]
        for head, other in zip(heads, torch.randperm(len(heads), generator=generator).tolist(), strict=True):
            shuffled[head] = flat[heads[other]]
    return by_block(net, shuffled)


@dataclass
class CostProbe:
    """Replaces `AttentionContext`: stock attention that adds to `costs`, in the backward pass, the cost of each size."""

    memories: nn.ModuleList
    sizes: Sequence[int]
    costs: list[Tensor]  # by block [groups, sizes]
    zero: Tensor  # added to outputs: gradients flow to it although all weights are frozen

    def attend(self, module: Any, q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
        out = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)
        out = out + self.zero.to(out)
        memory: Any = self.memories[module.memory_index]
        wide = torch.promote_types(q.dtype, torch.float32)
        if memory.map is None:
            return out
        q, k, v, cost = q.detach(), k.detach(), v.detach(), self.costs[module.memory_index]

        def add_costs(gradient: Tensor) -> None:
            g = gradient.to(wide).unflatten(1, (memory.shape.groups, -1))
            # Made here and not before: kept until then, the changes of all sizes and blocks would be many times the model's own.
            for index, change in enumerate(self.changes(memory, q.to(wide), k.to(wide), v.to(wide), scaling)):
                cost[:, index] += (g * change).sum((2, 3, 4)).square().sum(0).to(cost)

        out.register_hook(add_costs)
        return out

    @torch.no_grad()
    def changes(self, memory: RecurrentMemory, q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Iterator[Tensor]:
        """One size after another, the change δ of the outputs [batch, groups, shared, tokens, width]."""
        q = q.unflatten(1, (memory.shape.groups, -1))
        column = torch.arange(k.shape[2], device=k.device)
        ago = column[:, None] - column
        scores = (group_matmul(q, k.mT) * scaling).masked_fill(ago < 0, LARGE_NEGATIVE)
        old = memory.map.queries(q * scaling**0.5)[1].expand_as(scores).masked_fill(ago < 0, LARGE_NEGATIVE)
        exact, first = group_matmul(scores.softmax(-1), v), column < memory.sinks
        for n in self.sizes:
            yield group_matmul(torch.where((ago < n) | first, scores, old).softmax(-1), v) - exact


def costs_by_size(
    surrogate: RecurrentForCausalLM,
    windows: Windows,
    sizes: Sequence[int],
    *,
    seed: int,
    batch: int,
    progress: Progress | None = None,
    task: str = "costs of keys (windows)",
) -> list[Float[Tensor, "groups sizes"]]:
    """By block, the cost of each key head at each number of exact keys, in nats per token, estimated for that head alone."""
    device = surrogate.device
    costs = [
        torch.zeros(memory.shape.groups, len(sizes), dtype=torch.float64, device=device)
        for memory in memories(surrogate)
    ]
    generator = torch.Generator().manual_seed(seed)
    seen = 0
    for start in range(0, len(windows.ids), batch):
        ids = windows.ids[start : start + batch].long().to(device)
        zero = torch.zeros((), device=device, requires_grad=True)
        probe = CostProbe(surrogate.memories, sizes, costs, zero)
        given = surrogate.base(input_ids=ids, use_cache=False, recurrent=probe).logits.float().log_softmax(-1)
        drawn = torch.multinomial(given.detach().exp().flatten(0, 1).cpu(), 1, generator=generator).to(device)
        given.flatten(0, 1).gather(1, drawn).sum().backward()
        seen += ids.numel()
        if progress:
            progress(task, start + len(ids), len(windows.ids))
    return [cost / (2 * seen) for cost in costs]


def distribute_keys(
    costs: Float[Tensor, "heads sizes"], sizes: Sequence[int], widths: Sequence[int], *, alike: int
) -> list[int]:
    """One of the (ascending) `sizes` for every head, in total at most `alike` keys in each. A key of head h takes `widths[h]`.

    Along the lower convex hull of a head's costs, each step saves less per byte than the one before. Taking the steps of all
    heads in order of their savings is therefore optimal for every total that is reached (Everett 1963).
    """
    steps = []
    for head, (cost, width) in enumerate(zip(costs.tolist(), widths, strict=True)):
        at = 0
        while True:
            saved = [
                ((cost[at] - cost[to]) / (width * (sizes[to] - sizes[at])), to) for to in range(at + 1, len(sizes))
            ]
            if not saved or (best := max(saved))[0] <= 0:
                break
            steps.append((best[0], head, at, best[1]))
            at = best[1]
    left = sum(width * (alike - sizes[0]) for width in widths)
    chosen = [0] * len(widths)
    for _, head, at, to in sorted(steps, key=lambda step: (-step[0], step[1])):
        price = widths[head] * (sizes[to] - sizes[at])
        if chosen[head] == at and price <= left:
            chosen[head], left = to, left - price
    return [sizes[index] for index in chosen]
