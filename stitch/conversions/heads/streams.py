"""The streams of a converted model, block after block, so that refits correct the errors of earlier blocks."""

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from stitch.activations.observe import residuals
from stitch.conversions.heads.moments import chunks, normed
from stitch.conversions.heads.seams import entering
from stitch.internals import weights
from stitch.internals.attend import Heads, heads_of, mixed, scores
from stitch.internals.weights import Attention
from stitch.models.model import Model
from stitch.regression.moments import accumulate
from stitch.regression.prior import ridge_towards


@dataclass
class ConvertedStreams:
    """A model during its conversion.

    `streams` are those leaving the last converted block, by split; `earlier` are streams that a later seam reads. `attentions`
    are the converted ones so far.
    """

    streams: dict[str, Float[Tensor, "windows t width"]]
    earlier: dict[str, dict[int, Tensor]]
    attentions: list[Attention] = field(default_factory=list)

    def enter(self, model: Model, block: int, ids: dict[str, Tensor]) -> None:
        """Makes the streams those that `block` reads."""
        self.streams = {
            split: entering(model, block, stream, ids[split], self.earlier[split])
            for split, stream in self.streams.items()
        }

    def refit(self, model: Model, block: int, new: Attention, target: dict[str, Tensor]) -> Attention:
        """`new` with output weights refitted so that streams after it are near `target`. Moves `streams` through the block."""
        attended = {split: attention_output(model, block, new, stream) for split, stream in self.streams.items()}
        new = refitted_outputs(new, attended, self.streams, target)
        self.streams = {
            split: after_mlp(model, block, stream + written(new, attended[split]))
            for split, stream in self.streams.items()
        }
        return new


@torch.no_grad()
def attention_output(
    model: Model, block: int, attention: Attention, stream: Float[Tensor, "windows t width"]
) -> Float[Tensor, "windows heads t d"]:
    """The attended values of every head, before the output weights."""
    theta = weights.frequencies(model)
    found = []
    for rows in chunks(stream, attention.q.shape[1]):
        of: Heads = heads_of(attention, normed(model, block, stream[rows]))
        found.append(mixed(scores(of.q, of.k, theta, attention.scale).softmax(-1), of.v))
    return torch.cat(found)


def written(attention: Attention, heads: Float[Tensor, "windows heads t d"]) -> Float[Tensor, "windows t width"]:
    """The output of the attention for the attended values `heads`."""
    out = torch.einsum("whtd,hdm->wtm", heads, attention.o.to(heads))
    return out if attention.o_bias is None else out + attention.o_bias.to(heads)


def after_mlp(model: Model, block: int, stream: Tensor) -> Tensor:
    """The stream leaving `block`, from that after its attention."""
    return stream + model.blocks[block].get_submodule(model.anatomy.mlp)(
        weights.norm_module(model, "mlp", block)(stream)
    )


def refitted_outputs(
    new: Attention, read: dict[str, Tensor], streams: dict[str, Tensor], after: dict[str, Tensor]
) -> Attention:
    """`new` with output weights, and bias if it has one, by ridge regression towards their current values.

    The target is the difference between the donor's stream `after` its attention and the converted stream before it. `read` are
    the attended values of `new`.
    """

    def variables(split: str):
        for index in range(0, len(read[split]), 16):
            rows = slice(index, index + 16)
            heads = read[split][rows].transpose(1, 2).flatten(2).flatten(0, 1)
            if new.o_bias is not None:
                heads = torch.cat([heads, torch.ones_like(heads[:, :1])], 1)
            yield {"heads": heads, "target": (after[split][rows] - streams[split][rows]).flatten(0, 1)}

    products = [("heads", "heads"), ("heads", "target")]
    fit, held = (accumulate(variables(split), products, single={"heads", "target"}) for split in ("fit", "sweep"))
    prior = new.o.flatten(0, 1).double().to(read["fit"].device)
    if new.o_bias is not None:
        prior = torch.cat([prior, new.o_bias.to(prior)[None]])
    weight = ridge_towards(fit, held, prior, inputs="heads", target="target").weight
    bias = None if new.o_bias is None else weight[-1]
    return replace(new, o=weight[: new.o.shape[0] * new.o.shape[1]].view_as(new.o), o_bias=bias)


def _embedded(model: Model, ids: Tensor) -> Tensor:
    """The stream that enters the first block."""
    return torch.cat([residuals(model, part.to(model.device).long(), [0])[0] for part in ids.split(16)])
