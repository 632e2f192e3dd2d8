"""How many exact keys each key head gets: as many as pay, at a sum that is given.

A head whose attention stays near needs few keys, one that looks far back many. What it costs to have n is measured on the donor:
let δ be what a head's output at a token changes by when it sees its last n keys and the first ones exactly and all others as one
fitted feature, and g the gradient there of log p of tokens that the donor itself draws. To second order this change alone costs

    KL(donor ‖ changed) ≈ ½ E[(g·δ)²]     nats per token

(E[ggᵀ] is the Fisher information; Amari 1998). Costs of heads are added as if they were independent, and keys go where they
save most per byte, on the lower convex hull of each head's costs: of all choices with the same bytes the cheapest, but for the
last keys, which may not fit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stitch.conversions.donor import Donor
from stitch.conversions.recurrence.distil import HeadMoments, draw_rows, fit_outputs, initialise
from stitch.conversions.recurrence.fit import RATE, divergence, windows_per_step
from stitch.conversions.recurrence.forms import RecurrentForm, memories, sibling
from stitch.modeling.modeling_recurrent import LARGE_NEGATIVE, RecurrentForCausalLM, RecurrentMemory, group_matmul
from stitch.progress import Progress
from stitch.text.windows import Windows

Sizes = tuple[tuple[int, ...], ...]  # by block and key head

# Sizes to choose from, of 256 keys of the context.
IN_256 = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256)
ROUNDS = 3  # a head's one feature suits the keys beside it: costs are true near the sizes that it was fitted with alone
MOST_STEPS = 60  # of these fits
MEASURED = 16_384  # tokens


def allocate(
    net: RecurrentForCausalLM,
    donor: Donor,
    form: RecurrentForm,
    sums: Sequence[HeadMoments],
    progress: Progress | None = None,
) -> Sizes:
    """Exact keys of every key head, together no more bytes than `form.window + recipe.slots` for each. Of a few rounds, each
    measured with the sizes of the one before, that with the least KL(donor ‖ changed) on the sweep split.
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
    """Rising; the least is no more than what all heads could have alike."""
    sizes = {min(max(1, round(n * context / 256)), context - 1) for n in IN_256}
    return sorted(sizes | {min(alike, *sizes)})


def by_block(net: RecurrentForCausalLM, flat: Sequence[int]) -> Sizes:
    each = iter(flat)
    return tuple(tuple(next(each) for _ in range(memory.shape.groups)) for memory in memories(net))


def shuffled_sizes(net: RecurrentForCausalLM, sizes: Sizes, seed: int) -> Sizes:
    """The same numbers of keys for other heads, of the same width."""
    generator = torch.Generator().manual_seed(seed)
    kinds = [(memory.shape.width, memory.recurrent) for memory in memories(net) for _ in range(memory.shape.groups)]
    flat, dealt = [size for block in sizes for size in block], [0] * len(kinds)
    for kind in dict.fromkeys(kinds):
        heads = [head for head, one in enumerate(kinds) if one == kind]
        for head, other in zip(heads, torch.randperm(len(heads), generator=generator).tolist(), strict=True):
            dealt[head] = flat[heads[other]]
    return by_block(net, dealt)


@dataclass
class CostProbe:
    """In place of `AttentionContext`: the stock attention. With the gradient at its output comes what each size would cost."""

    memories: nn.ModuleList
    sizes: Sequence[int]
    rows: Tensor
    costs: list[Tensor]  # by block [groups, sizes], added to
    zero: Tensor  # through which gradients flow though no weight takes any

    def attend(self, module: Any, q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
        out = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)
        out = out + self.zero.to(out)
        memory: Any = self.memories[module.memory_index]
        wide = torch.promote_types(q.dtype, torch.float32)
        if memory.map is None:
            return out
        changes = self.changes(memory, q.detach().to(wide), k.detach().to(wide), v.detach().to(wide), scaling)
        cost = self.costs[module.memory_index]

        def see(gradient: Tensor) -> None:
            g = gradient[:, :, self.rows].to(wide).unflatten(1, (memory.shape.groups, -1))
            for index, change in enumerate(changes):
                cost[:, index] += (g * change).sum((2, 4)).square().sum((0, 2)).to(cost)

        out.register_hook(see)
        return out

    @torch.no_grad()
    def changes(self, memory: RecurrentMemory, q: Tensor, k: Tensor, v: Tensor, scaling: float) -> list[Tensor]:
        """[batch, groups, shared, rows, width] for every size."""
        q = q.unflatten(1, (memory.shape.groups, -1))
        q = q[:, :, :, self.rows]
        column = torch.arange(k.shape[2], device=k.device)
        ago = self.rows[:, None] - column
        scores = (group_matmul(q, k.mT) * scaling).masked_fill(ago < 0, LARGE_NEGATIVE)
        old = memory.map.queries(q * scaling**0.5)[1].expand_as(scores).masked_fill(ago < 0, LARGE_NEGATIVE)
        exact, first = group_matmul(scores.softmax(-1), v), column < memory.sinks
        seen = [group_matmul(torch.where((ago < n) | first, scores, old).softmax(-1), v) for n in self.sizes]
        return [one - exact for one in seen]


def costs_by_size(
    surrogate: RecurrentForCausalLM,
    windows: Windows,
    sizes: Sequence[int],
    *,
    seed: int,
    batch: int,
    progress: Progress | None = None,
    task: str = "what keys cost (windows)",
) -> list[Float[Tensor, "groups sizes"]]:
    """By block, what each key head costs at each number of exact keys: nats per token, to second order, were it alone."""
    device = surrogate.device
    costs = [
        torch.zeros(memory.shape.groups, len(sizes), dtype=torch.float64, device=device)
        for memory in memories(surrogate)
    ]
    generator = torch.Generator().manual_seed(seed)
    seen = 0
    for start in range(0, len(windows.ids), batch):
        ids = windows.ids[start : start + batch].long().to(device)
        rows = draw_rows(ids.shape[1], batch, generator).to(device)
        zero = torch.zeros((), device=device, requires_grad=True)
        probe = CostProbe(surrogate.memories, sizes, rows, costs, zero)
        given = surrogate.base(input_ids=ids, use_cache=False, recurrent=probe).logits.float().log_softmax(-1)
        drawn = torch.multinomial(given.detach().exp().flatten(0, 1).cpu(), 1, generator=generator).to(device)
        given.flatten(0, 1).gather(1, drawn).sum().backward()
        seen += len(ids) * len(rows)
        if progress:
            progress(task, start + len(ids), len(windows.ids))
    return [cost / (2 * seen) for cost in costs]


def distribute_keys(
    costs: Float[Tensor, "heads sizes"], sizes: Sequence[int], widths: Sequence[int], *, alike: int
) -> list[int]:
    """One of the (rising) sizes for every head, together no more than `alike` keys each; a key takes a head's width.

    Steps between neighbours on the lower convex hull of a head's costs save ever less per byte, so that the best steps of all
    heads in order are the best choice at every sum that they reach (Everett 1963).
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
