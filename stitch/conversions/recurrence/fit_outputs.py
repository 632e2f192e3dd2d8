"""Feature maps fitted to the attention outputs of the donor, by gradient steps.

The objective is the unexplained share of variance over query rows i. It is computed for each block separately, and the inputs of
every block are the donor's own (LoLCATs, Zhang et al. 2024):

    |Σ_j (p̂_ij − p_ij) v_j|² / Var(Σ_j p_ij v_j)

p and p̂ are the attention weights of donor and recurrent form. KL(p ‖ p̂) as the objective also fits large weights whose values
matter little: after equal steps, models with slots are then a third to two thirds further from their donor. Models with many
features and no slots are slightly closer (benchmarks/README.md).
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from stitch.conversions.distil import adam
from stitch.conversions.recurrence.head_moments import HeadInputs, visit_heads
from stitch.modeling.modeling_recurrent import LARGE_NEGATIVE, RecurrentForCausalLM, RecurrentMemory, group_matmul
from stitch.progress import Progress
from stitch.text.windows import Windows

ROWS = 256  # queries per step, at the same positions of each window: neighbouring queries are nearly redundant
SOFT = 0.3  # width of a priority's threshold in the gradient, in standard deviations of the priorities


def draw_rows(tokens: int, batch: int, generator: torch.Generator) -> Int64[Tensor, " rows"]:
    """Positions of the queries in a step of `batch` windows, ascending."""
    return torch.randperm(tokens, generator=generator)[: max(1, ROWS // batch)].sort().values


def output_loss(heads: HeadInputs, rows: Int64[Tensor, " rows"]) -> Float[Tensor, ""]:
    """The objective of one block on the query rows `rows`."""
    memory, root = heads.memory, heads.scaling**0.5
    q, k = heads.q[:, :, :, rows], heads.k
    column = torch.arange(k.shape[2], device=k.device)
    ago = rows[:, None] - column
    scores = (group_matmul(q, k.mT) * heads.scaling).masked_fill(ago < 0, LARGE_NEGATIVE)
    plain_k, log_k = memory.map.keys(k * root)
    plain_q, log_q = memory.map.queries(q * root)
    # float64, as past and future keys share one shift here. Sinks are always exact, and their keys may be extreme.
    log_k = log_k.double().masked_fill((column < memory.sinks)[:, None], -math.inf)
    shift = log_k.amax(2, keepdim=True).detach()
    log_q = log_q + shift[:, :, None]
    best = log_q.amax(-1, keepdim=True).detach()
    left, right = (log_q - best).exp(), (log_k - shift).exp()
    if plain_k is not None:
        left, right = left * plain_q, right * plain_k
    old = group_matmul(left, right.mT).clamp_min(1e-300).log() + best
    exact = (ago < per_head(memory.windows, k)) | (column < memory.sinks)
    old = old.to(scores)
    if memory.priority is not None:
        kept = kept_weights(memory, memory.priority(k * root, heads.v, column), ~exact)[:, :, None]
        best = torch.maximum(scores, old).detach()
        old = (kept * (scores - best).exp() + (1 - kept) * (old - best).exp()).clamp_min(1e-30).log() + best
    logs = torch.where(exact[:, None], scores, old).masked_fill(ago < 0, LARGE_NEGATIVE)
    wanted = group_matmul(scores.softmax(-1), heads.v)
    scale = (wanted - wanted.mean((0, 3), keepdim=True)).square().mean()
    return (group_matmul(logs.softmax(-1), heads.v) - wanted).square().mean() / scale


def per_head(sizes: Sequence[int], like: Tensor) -> Int64[Tensor, "groups 1 1"]:
    """`sizes` by key head, on the device of `like`, to be compared with [groups, rows, tokens]."""
    return torch.tensor(sizes, device=like.device)[:, None, None]


def kept_weights(
    memory: RecurrentMemory, priority: Float[Tensor, "batch groups tokens"], old: Bool[Tensor, "groups rows tokens"]
) -> Float[Tensor, "batch groups rows tokens"]:
    """1 where an old key has a slot, else 0, with the gradient of a sigmoid at the threshold (straight-through estimator)."""
    ranked = priority[:, :, None].masked_fill(~old, -math.inf)
    slots, most = per_head(memory.slots, priority), min(max(memory.slots) + 1, ranked.shape[-1])
    # −∞ is appended, as there is no next key where all keys have slots.
    best = nn.functional.pad(ranked.topk(most, -1).values, (0, 1), value=-math.inf)
    place = slots.clamp_max(most).expand(*ranked.shape[:-1], 1)
    last, next = best.gather(-1, (place - 1).clamp_min(0)), best.gather(-1, place)
    threshold = torch.where(next > -math.inf, (last + next) / 2, torch.full_like(last, LARGE_NEGATIVE))
    above = priority[:, :, None] - threshold
    soft = (above / (SOFT * priority.std(-1).detach().clamp_min(1e-6)[..., None, None])).sigmoid()
    return (above > 0).to(soft) + soft - soft.detach()


def fit_outputs(
    net: RecurrentForCausalLM,
    windows: Windows,
    *,
    steps: int,
    rate: float,
    batch: int,
    seed: int = 0,
    progress: Progress | None = None,
    task: str = "feature maps (steps)",
) -> list[float]:
    """Minimises the objective, summed over blocks, by Adam. Returns its mean over blocks for each step."""
    generator = torch.Generator().manual_seed(seed)
    course: list[float] = []

    def backward(ids: Tensor) -> None:
        rows = draw_rows(ids.shape[1], len(ids), generator).to(net.device)
        found = []

        def visit(heads: HeadInputs) -> None:
            with torch.enable_grad():
                loss = output_loss(heads, rows)
                loss.backward()
            found.append(loss.detach())

        visit_heads(net, ids, visit)
        course.append(float(torch.stack(found).mean()))

    adam(
        feature_parameters(net),
        windows,
        backward,
        steps=steps,
        rate=rate,
        batch=batch,
        seed=seed,
        progress=progress,
        task=task,
    )
    return course


def feature_parameters(net: RecurrentForCausalLM) -> list[nn.Parameter]:
    return [one for one in net.memories.parameters() if one.requires_grad]
