"""Models whose attentions are those of `_latent_peers.py`, with output weights as they were or refitted as in
`stitch convert heads`.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from _latent_peers import Heads, Latent
from torch import Tensor, nn
from transformers import PreTrainedModel

from stitch.activations.observe import residuals
from stitch.conversions.heads.moments import chunks, normed
from stitch.conversions.heads.streams import after_mlp, attention_output, refitted_outputs, written
from stitch.internals import weights
from stitch.internals.attend import mixed, turned
from stitch.internals.weights import Attention
from stitch.models.model import Model


@dataclass(frozen=True)
class Trace:
    """What the donor's attentions read and what the stream is after them, by split and block; `start` enters block 0."""

    start: dict[str, Tensor]
    read: dict[str, list[Tensor]]
    after: dict[str, list[Tensor]]

    def inputs(self, block: int) -> Tensor:
        """All inputs of a block's attention on the fit split, tokens × (width + 1), with a 1 at the end, in float64."""
        rows = self.read["fit"][block].flatten(0, 1).double()
        return torch.cat([rows, torch.ones_like(rows[:, :1])], 1)


@torch.no_grad()
def trace(model: Model, ids: dict[str, Tensor]) -> Trace:
    start = {split: embedded(model, some) for split, some in ids.items()}
    read: dict[str, list[Tensor]] = {split: [] for split in ids}
    after: dict[str, list[Tensor]] = {split: [] for split in ids}
    for split, stream in start.items():
        for block in range(model.depth):
            own = weights.attention(model, block)
            read[split].append(normed(model, block, stream))
            after[split].append(stream + written(own, attention_output(model, block, own, stream)))
            stream = after_mlp(model, block, after[split][-1])
    return Trace(start, read, after)


def embedded(model: Model, ids: Tensor) -> Tensor:
    """The stream that enters the first block."""
    return torch.cat([residuals(model, part.long(), [0])[0] for part in ids.split(16)])


@torch.no_grad()
def attended(heads: Heads, scale: float, x: Tensor) -> Tensor:
    """The mean of the values that each head attends to, windows × heads × t × head width, for inputs windows × t × width."""
    x = torch.cat([x, torch.ones_like(x[..., :1])], -1)
    q, k, v = (torch.einsum("wti,ihd->whtd", x, weight.to(x)) for weight in (heads.q, heads.k, heads.v))
    shared = q.shape[1] // k.shape[1]
    angles = torch.arange(x.shape[1])[:, None] * heads.frequencies[:, None]  # key heads × t × planes
    cos, sin = angles.cos().to(x), angles.sin().to(x)
    q = turned(q, cos.repeat_interleave(shared, 0), sin.repeat_interleave(shared, 0))
    k = turned(k, cos, sin).repeat_interleave(shared, 1)
    later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
    return mixed((scale * q @ k.mT).masked_fill(later, -torch.inf).softmax(-1), v)


@torch.no_grad()
def refitted(model: Model, latents: Sequence[Latent], of: Trace) -> list[Attention]:
    """The donor's attentions with output weights (and biases) refitted block after block, for heads of `latents`."""
    streams, found = dict(of.start), []
    for block, latent in enumerate(latents):
        own = weights.attention(model, block)
        read = {
            split: torch.cat([
                attended(latent.heads, own.scale, normed(model, block, stream[rows]))
                for rows in chunks(stream, own.q.shape[1])
            ])
            for split, stream in streams.items()
        }  # fmt: skip
        own = replace(own, o=own.o.double(), o_bias=None if own.o_bias is None else own.o_bias.double())
        new = refitted_outputs(own, read, streams, {split: after[block] for split, after in of.after.items()})
        streams = {
            split: after_mlp(model, block, stream + written(new, read[split])) for split, stream in streams.items()
        }
        found.append(new)
    return found


class LatentAttention(nn.Module):
    """In place of a stock attention, for whole windows without a cache."""

    def __init__(self, heads: Heads, outputs: Attention) -> None:
        super().__init__()
        self.heads, self.outputs = heads, outputs

    def forward(self, hidden_states: Tensor, *_, **__) -> tuple[Tensor, None]:
        return written(self.outputs, attended(self.heads, self.outputs.scale, hidden_states)), None


def with_latents(
    model: Model, latents: Sequence[Latent], outputs: Sequence[Attention] | None = None
) -> PreTrainedModel:
    """The model with heads of `latents`, and with the donor's output weights or those in `outputs`."""
    net = copy.deepcopy(model.net)
    new = Model(model.name, net, model.tokenizer, model.anatomy, model.folder)
    for block, latent in enumerate(latents):
        own = weights.attention(model, block) if outputs is None else outputs[block]
        new.blocks[block].set_submodule(model.anatomy.attention, LatentAttention(latent.heads, own))
    return net
