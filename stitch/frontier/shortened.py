"""`reference:b-shortened`: B without some neighbouring blocks, with the gap bridged by a refitted down projection."""

import torch
from jaxtyping import Float
from torch import Tensor

from stitch.activations.harvest import Activations, windows_per_shard
from stitch.activations.observe import residuals
from stitch.composite.bridges import fit_down_projection, sites_of
from stitch.composite.costs import whole
from stitch.composite.splice import Splice
from stitch.composite.surgery import Bridge, bridged, why_not_foldable
from stitch.evaluation.scores import whole_model
from stitch.frontier.alternative import Alternative, Means
from stitch.frontier.skips import AFFINE, joined
from stitch.models.flops import block_flops
from stitch.models.model import Model
from stitch.progress import counted
from stitch.text.documents import Split
from stitch.translation.evidence import LEAST_SQUARES_TOKENS

SAMPLE = 8_192  # tokens of the sweep split on which the cut is chosen


def shortened(model: Model, means: Means) -> Alternative | None:
    """The model without as few neighbouring blocks as keep within the composite's FLOPs.

    The cut is where the stream changes least in direction across it, as in Gromov et al. 2024 (2403.17887). The bridge is
    `translation:down-projection`, or an affine map in models into whose weights it does not fold. None where no cut of at
    most all but two blocks is within.
    """
    length = blocks_to_remove(model, means)
    if length is None:
        return None
    start = least_change(model, length, means)
    stop = start + length
    made = f"{model.name} without blocks {start} to {stop - 1} of {model.depth}"
    unread = model.last_site < model.depth  # a bridge is fitted on the last stream as well
    if unread or why_not_foldable(model, start, stop, means.memory) is not None:
        return joined(model, model, start, stop, AFFINE, f"{made}, an affine map in their place", means)
    splice = Splice(model.depth, start, stop)
    short = bridged(model, splice, _bridge(model, splice, means))
    return Alternative(made, whole(short, means.context), whole_model(short.net))


def blocks_to_remove(model: Model, means: Means) -> int | None:
    """The fewest blocks, at least one, without which the model takes no more FLOPs than the composite. Blocks count alike."""
    flops = whole(model, means.context).flops
    block = block_flops(model.config, model.depth // 2, means.context)
    lengths = range(1, model.last_site - 1)
    return next((length for length in lengths if flops - length * block <= means.limit.flops), None)


@torch.no_grad()
def least_change(model: Model, length: int, means: Means) -> int:
    """The first of `length` blocks across which the stream changes least in direction; block 0 is never removed."""
    windows = means.windows["sweep"]
    ids = windows.ids[: max(1, SAMPLE // windows.context)].long()
    similarity = torch.zeros(model.last_site - length, dtype=torch.float64)
    parts = ids.split(max(1, 2048 // windows.context))
    for part in counted(parts, "change of the stream across blocks (batches)", means.progress):
        streams = residuals(model, part.to(model.device), range(model.last_site + 1))
        for start in range(1, model.last_site - length + 1):
            similarity[start - 1] += _cosines(streams[start], streams[start + length]).sum().cpu()
    return 1 + int(similarity.argmax())


def _cosines(one: Float[Tensor, "batch seq d"], other: Float[Tensor, "batch seq d"]) -> Float[Tensor, " tokens"]:
    """Cosines of all tokens but the first of each window, a sink."""
    return torch.cosine_similarity(one[:, 1:].flatten(0, 1).double(), other[:, 1:].flatten(0, 1).double(), dim=1)


def _bridge(model: Model, splice: Splice, means: Means) -> Bridge:
    read = sites_of(splice)
    per_shard = windows_per_shard(means.context, len(read) * model.width, model.dtype, means.memory)
    splits: tuple[Split, ...] = ("fit", "sweep")
    streams: dict[Split, Activations] = {
        split: means.harvested(
            model, means.windows[split].first(LEAST_SQUARES_TOKENS), read,
            means.scratch / f"cut-{splice.early}-{splice.late}-{split}", per_shard,
        )
        for split in splits
    }  # fmt: skip
    return fit_down_projection(model, splice, streams, memory=means.memory, progress=means.progress)
