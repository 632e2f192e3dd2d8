"""The stream of a composite from block to block, translated at its seams."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stitch.models.model import Model

AT_ONCE = 16  # windows that are translated at a time


@torch.no_grad()
def entering(
    model: Model,
    block: int,
    stream: Float[Tensor, "windows t width"],
    ids: Int[Tensor, "windows t"],
    earlier: dict[int, Tensor],
) -> Float[Tensor, "windows t wanted"]:
    """The stream that enters `block`, given the `stream` that leaves the block before it (for block 0: that enters it).

    `earlier` holds the streams, by block, that later seams read. It is updated.
    """
    part, _ = model.in_part(block)
    for site, translation in model.seams:
        if site == block > 0:
            streams = {**earlier, site: stream}
            parts = []
            for start in range(0, len(ids), AT_ONCE):
                rows = slice(start, start + AT_ONCE)
                some = {place: streams[place][rows] for place in translation.sites}
                tokens = ids[rows].to(stream.device).long()
                positions = torch.arange(tokens.shape[1], device=stream.device).expand_as(tokens)
                parts.append(translation(some, tokens, positions).to(part.net.dtype))
            stream = torch.cat(parts)
    if any(block < site and block in translation.sites for site, translation in model.seams):
        earlier[block] = stream
    return stream
