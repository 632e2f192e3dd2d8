"""What each attention head looks at, and what it costs that it knows only its strongest keys.

The cost of changing a head is estimated to second order. With δ_t, the change of its output at token t of a window, and g_t, the
gradient at that output of the log probability of a window that the model itself samples token by token,

    KL(model ‖ changed) ≈ ½ E[(Σ_t g_t·δ_t)²]     nats per window

(E[ggᵀ] is the Fisher information; Amari 1998). It is the cost of changing this head alone, at all tokens at once.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from stitch.internals.attention import Attended, attending
from stitch.layers.keys import equalised, strongest
from stitch.layers.tokens import Kinds, by_distance, kinds_of
from stitch.models.model import Model
from stitch.progress import Progress
from stitch.text.windows import Windows

SIZES = (1, 4, 16, 64)  # numbers of keys that are kept
WHOLE = 0.05  # of the variance of what a head writes: keys count as all that matter where the rest changes less


@dataclass
class HeadSums:
    """Sums over queries, for the heads of a block. `moved` is probability times the length of what the key's value writes."""

    queries: int = 0
    outputs: Float[Tensor, "heads d"] | None = None
    sums: dict[str, Float[Tensor, " heads"]] = field(default_factory=dict)
    by_size: dict[str, Float[Tensor, "heads sizes"]] = field(default_factory=dict)

    def add(self, name: str, value: Float[Tensor, " heads"]) -> None:
        self.sums[name] = self.sums.get(name, 0) + value.detach().double().cpu()

    def add_sizes(self, name: str, value: Float[Tensor, "heads sizes"]) -> None:
        self.by_size[name] = self.by_size.get(name, 0) + value.detach().double().cpu()


def measure_heads(
    model: Model,
    windows: Windows,
    *,
    far: int,
    sizes: Sequence[int] = SIZES,
    seed: int = 0,
    costs: bool = True,
    progress: Progress | None = None,
    task: str = "heads (windows)",
) -> list[list[dict]]:
    """By block and head, a dict of what the head looks at and of what its strongest keys leave out.

    `far` is in tokens. Without `costs` there is no backward pass. Raises: UsageError for a family whose attention is not known.
    """
    kinds = kinds_of(windows.ids, model.bos, far)
    chances = by_distance(kinds.copies_at), by_distance(kinds.other_copies_at)
    lengths = [_metric(model, block) for block in range(model.depth)]
    found = [HeadSums() for _ in range(model.depth)]
    generator = torch.Generator().manual_seed(seed)
    zero = torch.zeros((), device=model.device, requires_grad=costs)
    for row in range(len(windows.ids)):
        rows = slice(row, row + 1)
        ids = windows.ids[rows].long()

        def attend(seen: Attended, rows: slice = rows) -> Tensor:
            sums, metric = found[seen.block], lengths[seen.block]
            with torch.no_grad():
                _look(sums, seen, metric, kinds, rows, *chances)
                changes = _changes(sums, seen, metric, sizes)
            out = seen.exact + zero.to(seen.values)
            if costs:
                out.register_hook(_adder(sums, changes))
            return out

        with frozen(model.net), torch.set_grad_enabled(costs):
            with attending(model, attend):
                logits = model.net(input_ids=ids.to(model.device), use_cache=False).logits
            if costs:
                _sample(logits, generator).backward()
        if progress:
            progress(task, row + 1, len(windows.ids))
    return [_described(sums, metric, sizes) for sums, metric in zip(found, lengths, strict=True)]


@contextmanager
def frozen(net: nn.Module) -> Iterator[None]:
    """Inside, no parameter of `net` takes a gradient."""
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _sample(logits: Float[Tensor, "1 t vocabulary"], generator: torch.Generator) -> Float[Tensor, ""]:
    """The log probability of tokens drawn from the logits, one at each position."""
    known = logits.float().log_softmax(-1).flatten(0, 1)
    drawn = torch.multinomial(known.detach().exp().cpu(), 1, generator=generator)
    return known.gather(1, drawn.to(known.device)).sum()


def _metric(model: Model, block: int) -> Float[Tensor, "heads d d"]:
    """For each head, G with ‖what an output o writes to the stream‖² = o G oᵀ."""
    out: Any = model.heads_out(block)
    weight: Tensor = out.weight if isinstance(out, Conv1D) else out.weight.T
    by_head = weight.detach().float().unflatten(0, (model.heads(block), -1))
    return by_head @ by_head.mT


def _look(
    sums: HeadSums,
    seen: Attended,
    metric: Tensor,
    kinds: Kinds,
    rows: slice,
    copies: Float[Tensor, "t t"],
    other_copies: Float[Tensor, "t t"],
) -> None:
    """Adds what the heads look at, in one block."""
    values = seen.values.float()
    length = ((values @ metric) * values).sum(-1).clamp_min(0).sqrt()  # [windows, heads, t]
    moved = seen.pattern * length[:, :, None]
    far = kinds.far_keys(rows).to(moved.device)
    far_moved = moved * far
    every = (0, 2, 3)
    sums.queries += moved.shape[0] * moved.shape[2]
    sums.add("sink", seen.pattern[..., 0].sum((0, 2)))
    sums.add("far", (seen.pattern * far).sum(every))
    sums.add("moved", moved.sum(every))
    sums.add("far moved", far_moved.sum(every))
    sums.add("rare", (far_moved * kinds.rare_keys(rows).to(moved.device)).sum(every))
    sums.add("rare expected", far_moved.sum(every) * kinds.rare_share)
    for name, of, chance in (("copies", kinds.ids, copies), ("other copies", kinds.others, other_copies)):
        sums.add(name, (far_moved * kinds.after_copies(rows, of).to(moved.device)).sum(every))
        sums.add(f"{name} expected", (far_moved * chance.to(moved)).sum(every))


def _changes(sums: HeadSums, seen: Attended, metric: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """The changes of the heads' output where all but the strongest keys are equalised, by size; adds their squared lengths."""
    exact, values = seen.pattern @ seen.values.float(), seen.values.float()
    changes = [equalised(seen, strongest(seen, size)) @ values - exact for size in sizes]

    def squared(x: Tensor) -> Tensor:
        return ((x @ metric) * x).sum((0, 2, 3))

    sums.add_sizes("change", torch.stack([squared(change) for change in changes], -1))
    sums.add("written", squared(exact))
    total = exact.double().sum((0, 2)).cpu()
    sums.outputs = total if sums.outputs is None else sums.outputs + total
    return changes


def _adder(sums: HeadSums, changes: list[Tensor]):
    def add_costs(gradient: Tensor) -> None:
        products = [(gradient.float() * change).sum((-1, 2)).square().sum(0) / 2 for change in changes]
        sums.add_sizes("cost", torch.stack(products, -1))

    return add_costs


def _described(sums: HeadSums, metric: Float[Tensor, "heads d d"], sizes: Sequence[int]) -> list[dict]:
    total, by_size = sums.sums, sums.by_size
    assert sums.outputs is not None
    of_mean = torch.einsum("hi,hij,hj->h", sums.outputs, metric.double().cpu(), sums.outputs) / sums.queries
    error = by_size["change"] / (total["written"] - of_mean).clamp_min(1e-30)[:, None]

    def ratio(name: str, of: str) -> list[float | None]:
        return [float(part / whole) if whole > 0 else None for part, whole in zip(total[name], total[of], strict=True)]

    far, rare = ratio("far moved", "moved"), ratio("rare", "rare expected")
    copies, other = ratio("copies", "copies expected"), ratio("other copies", "other copies expected")
    return [
        {
            "keys": next((size for size, one in zip(sizes, error[head], strict=True) if one <= WHOLE), None),
            "error": error[head].tolist(),
            "sink": float(total["sink"][head] / sums.queries),
            "far": float(total["far"][head] / sums.queries),
            "far_moved": far[head],
            "rare": rare[head],
            "copies": copies[head],
            "copies_null": other[head],
            "cost": (by_size["cost"][head] / sums.queries).tolist() if "cost" in by_size else None,
        }
        for head in range(len(total["sink"]))
    ]
