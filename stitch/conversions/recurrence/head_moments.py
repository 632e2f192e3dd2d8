"""What the donor's attention reads and gives, and its moments by head."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from stitch.modeling.modeling_recurrent import RecurrentForCausalLM, RecurrentMemory
from stitch.progress import Progress
from stitch.text.windows import Windows

FIRST = 1  # tokens left out of moments: the key of the first token is an outlier


@dataclass(frozen=True)
class HeadInputs:
    """Queries, keys and values of one block's heads. A score, in nats, is `scaling` · q·k."""

    memory: RecurrentMemory
    q: Float[Tensor, "batch groups shared tokens width"]
    k: Float[Tensor, "batch groups tokens width"]
    v: Float[Tensor, "batch groups tokens width_v"]
    scaling: float


class DonorAttention:
    """Replaces `AttentionContext`: stock attention that calls `visit` with the heads of every block that has a feature map."""

    def __init__(self, memories: nn.ModuleList, visit: Callable[[HeadInputs], object]):
        self.memories, self.visit = memories, visit

    def attend(self, module: Any, q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
        memory: Any = self.memories[module.memory_index]
        wide = torch.promote_types(q.dtype, torch.float32)
        if memory.map is not None:
            own = q.to(wide).unflatten(1, (memory.shape.groups, memory.shape.shared))
            self.visit(HeadInputs(memory, own, k.to(wide), v.to(wide), scaling))
        return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)


@torch.no_grad()
def visit_heads(
    net: RecurrentForCausalLM, ids: Int64[Tensor, "batch tokens"], visit: Callable[[HeadInputs], object]
) -> None:
    """Runs the donor once and calls `visit` with the heads of every block that has a feature map."""
    body: Any = net.base.base_model
    body(input_ids=ids.to(net.device), use_cache=False, recurrent=DonorAttention(net.memories, visit))


@dataclass
class HeadMoments:
    """Sums over `count` tokens of queries, keys, values and their products; q and k are multiplied by scaling^½."""

    count: int
    q: Float[Tensor, "groups shared width"]
    qq: Float[Tensor, "groups shared width width"]
    k: Float[Tensor, "groups width"]
    kk: Float[Tensor, "groups width width"]
    v: Float[Tensor, "groups width_v"]
    squares: Float[Tensor, "groups width_v"]  # of values

    @classmethod
    def of(cls, heads: HeadInputs) -> "HeadMoments":
        root = heads.scaling**0.5
        q, k = heads.q[:, :, :, FIRST:].double() * root, heads.k[:, :, FIRST:].double() * root
        v = heads.v[:, :, FIRST:].double()
        return cls(
            k.shape[0] * k.shape[2], q.sum((0, 3)), (q.mT @ q).sum(0), k.sum((0, 2)), (k.mT @ k).sum(0),
            v.sum((0, 2)), v.square().sum((0, 2)),
        )  # fmt: skip

    def plus(self, more: "HeadMoments") -> "HeadMoments":
        return HeadMoments(*(getattr(self, field.name) + getattr(more, field.name) for field in fields(self)))


def head_moments(
    net: RecurrentForCausalLM, windows: Windows, batch: int, progress: Progress | None = None
) -> list[HeadMoments]:
    """Moments of every block that has a feature map, in order. All recurrent forms of a model are initialised from them."""
    found: dict[RecurrentMemory, HeadMoments] = {}

    def add(heads: HeadInputs) -> None:
        new, memory = HeadMoments.of(heads), heads.memory
        found[memory] = found[memory].plus(new) if memory in found else new

    for start in range(0, len(windows.ids), batch):
        ids = windows.ids[start : start + batch].long()
        visit_heads(net, ids, add)
        if progress:
            progress("moments (windows)", start + len(ids), len(windows.ids))
    return list(found.values())
